"""The rows of the live view's panel: the figures of one step, and its best and worst sample."""

from __future__ import annotations

import math
from typing import Any

from rich.columns import Columns
from rich.console import RenderableType
from rich.rule import Rule
from rich.text import Text

from rlhf_pg.display.figures import compact, cut, eval_text, number, shown, tokens_per_second
from rlhf_pg.display.text import visible
from rlhf_pg.names import STATISTICS

EXPLAINED = "value/explained_variance"
CELL = 18  # characters of a figure with its label: four stand in a line of 80
IMITATION = (  # of supervised fine-tuning: label, metric, format
    ("loss", "loss", ".4f"),
    ("entropy", "entropy", ".3f"),
    ("grad norm", "grad_norm", ".3g"),
    ("lr", "lr", ".2e"),
)


def metric_rows(metrics: dict[str, Any], evals: dict[str, Any], sparkline: str) -> list[RenderableType]:
    """Return the figures of one step, each row one subject."""
    m = metrics
    if "reward/mean" not in m and "loss" in m:
        loss = Text.assemble(("loss ", "dim"), (shown(m, "loss", ".4f"), "bold green"), "  ", (sparkline, "green"))
        return [loss, _pairs([(name, shown(m, key, form)) for name, key, form in IMITATION[1:]])]
    reward = Text.assemble(
        ("reward ", "dim"), (shown(m, "reward/mean"), "bold green"), f" ± {shown(m, 'reward/std', '.2f')}  "
    )
    reward.append(sparkline, style="green")
    rows: list[RenderableType] = [reward]
    functions = [k for k in m if k.startswith("reward/") and k.removeprefix("reward/") not in STATISTICS]
    if len(functions) > 1:
        rows.append(_pairs([(visible(k.removeprefix("reward/")), shown(m, k)) for k in functions[:6]]))
    if evals:
        rows.append(Text.assemble(("held out ", "dim"), (eval_text(evals), "bold")))
    first = [("KL", shown(m, "kl/ref", ".4f"))] if "kl/ref" in m else []
    first += [("entropy", shown(m, "entropy", ".3f"))]
    first += [("clipped", shown(m, "clip/fraction", ".1%"))] if "clip/fraction" in m else []
    first += [("grad norm", shown(m, "grad_norm"))]
    second = [
        ("length", shown(m, "completion/length_mean", ".1f")),
        ("truncated", shown(m, "completion/truncated", ".1%")),
    ]
    second += [("flat groups", shown(m, "reward/zero_std_groups", ".0%")), ("tokens/s", compact(tokens_per_second(m)))]
    special = _special(m)
    rows += [_pairs(first), *([_pairs(special)] if special else []), _pairs(second), _time_row(m)]
    failed = [(k, number(m, f"outcome/{k}") or 0) for k in ("error", "timeout", "excluded")]
    if any(count > 0 for _, count in failed):
        rows.append(Text("  ".join(f"{k} {count:.0f}" for k, count in failed if count > 0), style="bold red"))
    return rows


def distances(m: dict[str, Any]) -> list[tuple[str, str]]:
    """Return KL to the reference and KL(old || new) of the update, those that the step measured, as (label, text)."""
    texts = [("kl", shown(m, "kl/ref", ".4f"))] if "kl/ref" in m else []
    if "trust/kl" in m or (number(m, "update/steps") or 0) > 1:  # a single gradient step always logs 0
        texts.append(("kl/old", shown(m, "kl/old", ".2g")))
    return texts


def sample_rows(samples: list[dict[str, Any]], characters: int = 240) -> list[RenderableType]:
    """Return best and worst of the step's samples, text escaped, long text cut in the middle."""
    scored = sorted((s for s in samples if number(s, "reward") is not None), key=lambda s: _rank(s), reverse=True)
    chosen = [("best", scored[0])] if scored else [("excluded", s) for s in samples[:1]]
    if len(scored) > 1:
        chosen.append(("worst", scored[-1]))
    rows: list[RenderableType] = []
    for label, sample in chosen:
        note = "  ".join(visible(str(sample.get(k))) for k in ("outcome", "finish") if sample.get(k) is not None)
        rows.append(
            Rule(Text(f"{label}  reward {shown(sample, 'reward')}  {note}", style="dim"), align="left", style="dim")
        )
        rows.append(Text.assemble((cut(visible(str(sample.get("prompt", ""))), characters // 2), "dim")))
        rows.append(Text(cut(visible(str(sample.get("completion", ""))), characters)))
    return rows


def _special(m: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what only some algorithms have: how far the update went, whether it was taken, how good the critic is."""
    texts = [("KL of update", value) for label, value in distances(m) if label == "kl/old"]
    if "trust/accepted" in m:
        accepted = number(m, "trust/accepted") == 1
        tried = f"in try {shown(m, 'trust/line_search_steps', '.0f')}"
        texts.append(("step", f"taken {tried}" if accepted else "refused"))
    if EXPLAINED in m:
        texts.append(("explained variance", shown(m, EXPLAINED, ".2f")))
    return texts


def _rank(sample: dict[str, Any]) -> float:
    reward = number(sample, "reward")
    return -math.inf if reward is None or math.isnan(reward) else reward


def _pairs(pairs: list[tuple[str, str]]) -> Columns:
    """Return labelled figures side by side, under each other from row to row; fewer to a line where that is narrow."""
    cells = [Text.assemble((f"{label} ", "dim"), value) for label, value in pairs]
    return Columns(cells, width=max(CELL, *(cell.cell_len for cell in cells)), padding=(0, 1))


def _time_row(metrics: dict[str, Any]) -> Text:
    total = number(metrics, "time/step_s")
    row = Text.assemble(("step ", "dim"), f"{shown(metrics, 'time/step_s', '.2f')} s  ")
    for name, style in (("rollout", "blue"), ("reward", "magenta"), ("update", "yellow")):
        seconds = number(metrics, f"time/{name}_s")
        if seconds is not None and total and math.isfinite(seconds / total):
            row.append("█" * max(round(20 * min(seconds / total, 1.0)), 1), style=style)
            row.append(f" {name} {seconds / total:.0%}  ")
    return row
