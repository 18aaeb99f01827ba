"""What `rlhf-pg variance` shows: a table, variance.json, variance.png."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlhf_pg.display.pictures import BLUE, ORANGE, panels, png
from rlhf_pg.storage.atomic_io import write_atomic

BESIDE: dict[str, Any] = {  # a number on white, so that no line crosses it
    "textcoords": "offset points",
    "va": "center",
    "fontsize": 9,
    "color": "dimgray",
    "bbox": {"facecolor": "white", "linewidth": 0, "pad": 1},
}


def write(result: dict[str, Any], folder: Path, console: Console | None = None) -> None:
    """Print the table with its notes, write both files, print their paths."""
    console = console or Console(width=None if sys.stdout.isatty() else 100)
    console.print(Text(recommendation(result), style="bold"), Text(heading(result)), table(result), sep="\n")
    biased = [f"* {row['name']} is biased: {bias_text(row)}" for row in result["estimators"] if row["bias"]]
    for line in [*biased, *map(step_line, result["rungs"]), *result["notes"]]:
        console.print(Text(line))
    files = {"variance.json": (json.dumps(result, indent=2) + "\n").encode(), "variance.png": picture(result)}
    for name, data in files.items():
        write_atomic(folder / name, data)
        console.print(Text(str(folder / name)), soft_wrap=True)


def recommendation(result: dict[str, Any]) -> str:
    """Return which unbiased estimator has the least variance, how much less than reward-to-go, and how sure that is."""
    rows = {row["name"]: row for row in result["estimators"]}
    best = rows[result["large_sample_gradient"]]
    if best["to_reward_to_go"] is None:
        return "No estimator is less noisy: their gradients do not vary on these groups."
    ratio, (low, high) = best["to_reward_to_go"]
    options = ", ".join(f"{key}={value}" for key, value in best["options"].items() if key in ("baseline", "lam"))
    setting = f"algorithm.name={best['algorithm']}" + (f", {options}" if options else "")
    if best["name"] == "reward-to-go" or ratio <= 0:
        gain = "no baseline is less noisy than it here"
    elif high < 1:
        gain = (
            f"{1 / ratio:.2g} times less variance than reward-to-go (95 %: {1 / high:.2g} to {1 / max(low, 1e-9):.2g})"
        )
    else:
        gain = f"{ratio:.2g} of reward-to-go's variance, which may be chance (95 %: {low:.2g} to {high:.2g})"
    ties = [
        row["name"]
        for row in rows.values()
        if row is not best and row["to_least_noisy"] and row["to_least_noisy"][1][0] <= 1
    ]
    certain = (
        f"not to be told from {' and '.join(ties)}; try more --groups" if ties else "beyond chance the least of all"
    )
    return f"Least noisy: {best['name']} ({setting}): {gain}; {certain}."


def heading(result: dict[str, Any]) -> str:
    """Return what was measured, and on what."""
    explained = result["value/explained_variance"]
    critic = "" if explained is None else f"; the critic explains {explained:.0%} of the returns' variance"
    return (
        f"Gradient of one step of {result['prompts_per_step']} groups, after {result['after']} steps of "
        f"{result['recipe']['algorithm']['name']}. Measured on {result['groups']} groups "
        f"({result['rollouts']} samples): reward {result['reward/mean']:.3f}, KL penalty "
        f"{result['reward/kl_penalty']:.4f}{critic}."
    )


def table(result: dict[str, Any]) -> Table:
    """Return one row per estimator, within 80 columns."""
    rows = Table(box=box.SIMPLE_HEAD, padding=0)
    rows.add_column("estimator", no_wrap=True)
    for name in ("variance", "/ reward-to-go", "SNR", "cosine"):
        rows.add_column(name, justify="right", no_wrap=True)
    for row in result["estimators"]:
        ratio = row["to_reward_to_go"]
        low, high = row["variance_interval"]
        spread = max(high - row["variance"], row["variance"] - low) / row["variance"] if row["variance"] else 0.0
        if ratio is None:
            relative = "-" if row["same_scale"] else "another scale"
        else:
            relative = "1" if row["name"] == "reward-to-go" else _briefly(ratio[0], ratio[1])
        rows.add_row(
            row["name"] + ("*" if row["bias"] else ""),
            f"{row['variance']:.2e} ±{spread:.0%}",
            relative,
            "-" if row["snr"] is None else _briefly(row["snr"], row["snr_interval"]),
            f"{sum(row['cosines']) / len(row['cosines']):.3f}" if row["cosines"] else "-",
        )
    return rows


def bias_text(row: dict[str, Any]) -> str:
    return row["bias"] + ("" if row["same_scale"] else "; on another scale, so compare only SNR and cosine")


def between(value: float, interval: tuple[float, float]) -> str:
    """Return a number and its interval, to three digits."""
    return f"{value:#.3g} [{interval[0]:#.3g}, {interval[1]:#.3g}]"


def _briefly(value: float, interval: tuple[float, float]) -> str:
    """Return a number and its interval to two digits, so that the table fits into 80 columns."""
    text, low, high = (f"{x:,.0f}" if abs(x) >= 10 else f"{x:#.2g}" for x in (value, *interval))
    return f"{text} [{low}, {high}]"


def step_line(step: dict[str, Any]) -> str:
    """Return one rung of the ladder in a sentence."""
    low, high = step["interval"]
    verdict = "less" if high < 1 else "more" if low > 1 else "not distinguishable from 1"
    return f"{step['to']} / {step['from']}: {between(step['ratio'], step['interval'])} of the variance, {verdict}"


def picture(result: dict[str, Any]) -> bytes:
    """Return a PNG: variance relative to reward-to-go, SNR, and the cosines of single steps, an estimator a line."""
    rows = result["estimators"]
    figure, ((left, middle, right),) = panels(1, 3, 11, 1.6 + 0.38 * len(rows), grid="x", sharey=True)
    for place, row in enumerate(rows):
        color = ORANGE if row["bias"] else BLUE
        if ratio := row["to_reward_to_go"]:
            _bar(left, place, ratio[0], ratio[1], color)
        elif not row["same_scale"]:
            left.annotate("another scale", (0, place), (4, 0), **BESIDE)
        if row["snr"] is not None:
            _bar(middle, place, row["snr"], row["snr_interval"], color)
        if row["cosines"]:
            right.plot(row["cosines"], [place] * len(row["cosines"]), "|", color=color, alpha=0.5, markersize=10)
            right.plot(sum(row["cosines"]) / len(row["cosines"]), place, "o", color=color)
    left.set_yticks(range(len(rows)), [row["name"] for row in rows])
    left.set(title="variance, reward-to-go = 1", ylim=(len(rows) - 0.5, -0.5))
    left.axvline(1, color="gray", linewidth=0.8, linestyle=":", zorder=0)
    middle.set_title("signal-to-noise ratio of a step")
    right.set_title("cosine with a large-sample gradient")
    for axes in (left, middle):
        axes.margins(x=0.2)  # room for the numbers
        axes.set_xlim(left=min(0, axes.dataLim.x0))
    right.locator_params(axis="x", nbins=5)
    figure.suptitle(_caption(result), fontsize=9, color="gray")
    return png(figure)


def _bar(axes: Any, place: int, value: float, interval: tuple[float, float], color: str) -> None:
    """Draw a bar with its interval, and its number beside."""
    axes.barh(place, value, height=0.6, color=color, alpha=0.75)
    axes.plot(interval, [place, place], color="black", linewidth=1.2)
    axes.annotate(f"{value:#.2g}".rstrip("."), (max(value, *interval), place), (4, 0), **BESIDE)


def _caption(result: dict[str, Any]) -> str:
    return (
        f"{Path(result['run']).name} after {result['after']} steps, {result['groups']} groups. Black: 95 % interval. "
        "Orange: biased.\nRight: ticks are single steps, the dot is their mean. Large sample: the other steps' groups "
        f"by {result['large_sample_gradient']}."
    )
