"""Which curves the report draws: of one run, and of several over each other."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any

from rlhf_pg.display.figures import counted, eval_names, number, tokens_per_second
from rlhf_pg.display.text import visible
from rlhf_pg.names import STATISTICS
from rlhf_pg.report.axes import Point
from rlhf_pg.report.charts import Chart, Series, chart, smooth, stacked
from rlhf_pg.report.measures import (
    eval_bounds,
    eval_points,
    has_critic,
    has_trust_region,
    kl_moved,
    kl_of_steps,
    samples_seen,
    seconds_spent,
)
from rlhf_pg.report.run_record import RunRecord
from rlhf_pg.report.seed_groups import COLORS, SeedGroup, names

OUTCOMES = {"scored": 1, "unparseable": 3, "truncated": 4, "timeout": 5, "error": 2, "excluded": 6}
PHASES = {"rollout": 1, "reward": 3, "update": 2, "eval": 4}
NATS = "nats per token"
MOVED = (
    "A path added up, not the distance from the start. A trust region measures it after its step; other updates as the "
    "mean over their optimizer steps, each before it is taken."
)
SUMMED = "KL(old || new) of each rollout step, summed; nats per token"
ON_POLICY = "not measured; with one optimizer step per rollout, taken where it sampled, it cannot be"
Entry = tuple[str, Chart | None, bool]  # title, chart if it has data, whether the recipe could have recorded it


def curves(run: RunRecord) -> tuple[list[Chart], list[str]]:
    """Return the charts of one run, and the titles of those its recipe could have recorded but that have no data."""
    entries = [*_learning(run), *_policy(run), *_critic(run), *_trust_region(run), *_work(run)]
    return [c for _, c, _ in entries if c], [title for title, c, expected in entries if c is None and expected]


def overlays(groups: list[SeedGroup]) -> tuple[list[Chart], list[str]]:
    """Return the charts of several runs, and the titles of those for which no run has data.

    Each recipe has one colour; its seeds are thin lines under their mean.
    """
    charts = dict(_overlays(groups))
    return [c for c in charts.values() if c], [title for title, c in charts.items() if c is None]


def mean_line(lines: list[list[Point]], places: list[dict[float, float]]) -> list[Point]:
    """Return (mean place, mean value) of several (step, value) lines, at each step where all of them have a value."""
    finite = [{step: y for step, y in line if y is not None} for line in lines]
    shared = sorted(set.intersection(*map(set, finite))) if finite else []
    return [
        (statistics.fmean(place.get(step, 0.0) for place in places), statistics.fmean(line[step] for line in finite))
        for step in shared
    ]


def _learning(run: RunRecord) -> Iterator[Entry]:
    yield _line(run, "Reward", "reward/mean", "mean of the step's samples", floor=None)
    logged = {k.removeprefix("eval/") for row in run.steps for k in row if k.startswith("eval/")}
    lines, dots = [], []
    for color, name in enumerate(eval_names(logged, run.evaluation("before"), run.evaluation("after"))[:4], 1):
        points = eval_points(run, name)
        lines.append(Series(visible(name), points, color=color))
        dots.append(Series(visible(name), points, "points", color, eval_bounds(run, points, name)))
    evaluates = not run.config or run.setting("data.eval") is not None
    yield _entry("Held-out", [*lines, *dots], "share of problems solved", evaluates, unit="%", floor=None)
    rewards = {k.removeprefix("reward/") for row in run.steps for k in row if k.startswith("reward/")} - STATISTICS
    functions = [
        Series(visible(name), smooth(run.series(f"reward/{name}")), color=color)
        for color, name in enumerate(sorted(rewards)[:COLORS], 1)
    ]
    specs = run.setting("rewards")
    several = isinstance(specs, list) and len(specs) > 1
    note = "smoothed, before weights"
    yield _entry("Reward by function", functions if len(rewards) > 1 else [], note, several, floor=None)


def _policy(run: RunRecord) -> Iterator[Entry]:
    region = has_trust_region(run)
    yield _line(run, "KL to the reference", "kl/ref", NATS, run.setting("kl.coefficient") != 0)
    adapts = run.setting("kl.target") is not None
    yield _line(run, "KL coefficient", "kl/coefficient", "adapted to kl.target", adapts)
    kl = [] if region else kl_of_steps(run)  # a trust region has a chart of its own
    limit = _limit([(x, number(run.setting("update", {}), "max_kl")) for x, _ in kl], "stops at")
    note = "KL(old || new), mean over its optimizer steps"
    yield _entry("KL of the update", [*_smoothed(kl), *limit], note, expected=False)
    yield _line(run, "Entropy", "entropy", NATS)
    yield _line(run, "Completion length", "completion/length_mean", "tokens, mean")
    yield _line(run, "Truncated", "completion/truncated", "completions cut off", share=True)
    options = run.setting("algorithm.options")
    clips = isinstance(options, dict) and "clip_low" in options
    yield _line(run, "Clipped", "clip/fraction", "tokens whose ratio was clipped", clips, share=True)
    yield _line(run, "Gradient norm", "grad_norm", "of the surrogate" if region else "before clipping")
    equal = "all rewards of the group equal"
    yield _line(run, "Groups without signal", "reward/zero_std_groups", equal, share=True)


def _critic(run: RunRecord) -> Iterator[Entry]:
    expected = has_critic(run)
    note = "0: no better than the mean return, 1: exact"
    yield _line(run, "Explained variance", "value/explained_variance", note, expected, floor=None, ceiling=1.0)
    yield _line(run, "Critic loss", "value/loss", "half the squared error", expected)
    yield _line(run, "Critic gradient norm", "value/grad_norm", "before clipping", expected)


def _trust_region(run: RunRecord) -> Iterator[Entry]:
    expected = has_trust_region(run)
    kl, accepted = run.series("trust/kl"), run.series("trust/accepted")
    refused = sum(y == 0 for _, y in accepted)
    note = "KL(old || new) of each step, nats"
    note += f"; {refused} of {counted(len(accepted), 'step')} refused" if refused else ""
    limit = _limit(run.series("trust/max_kl"), "limit")
    yield _entry("Trust region", [*_smoothed(kl), *limit], note, expected)
    yield _line(run, "Improvement", "trust/improvement", "of the surrogate, in the step taken", expected)
    yield _line(run, "Line search", "trust/line_search_steps", "lengths tried until one was accepted", expected)
    left = "of the gradient, left by conjugate gradients"
    yield _line(run, "Residual", "trust/cg_residual", left, expected, share=True)
    passes = [
        Series(name, smooth(run.series(f"trust/{name}")), color=color)
        for name, color in (("forwards", 1), ("backwards", 2))
    ]
    yield _entry("Passes", passes, "over the rows of a step, smoothed", expected)


def _work(run: RunRecord) -> Iterator[Entry]:
    outcomes = [(name, run.series(f"outcome/{name}"), color) for name, color in OUTCOMES.items()]
    yield "Outcomes", stacked("Outcomes", outcomes, note="share of samples"), True
    phases = [(name, run.series(f"time/{name}_s"), color) for name, color in PHASES.items()]
    by_step = [dict(points) for _, points, _ in phases]
    rest: list[Point] = [
        (x, max(y - sum(phase.get(x) or 0.0 for phase in by_step), 0.0))
        for x, y in run.series("time/step_s")
        if y is not None
    ]
    yield "Time", stacked("Time", [*phases, ("other", rest, 8)], note="seconds per step", share=False), True
    speed: list[Point] = [(float(row["step"]), tokens_per_second(row)) for row in run.steps]
    yield _entry("Generation speed", _smoothed(speed), "tokens per second of rollout")
    yield _entry("Memory", [Series("peak", run.series("memory/peak_gib"))], "GiB, the most that tensors have taken")
    yield _line(run, "Engine mismatch", "mismatch/kl", "KL of engine and trainer, per token", floor=None)


def _entry(
    title: str, series: list[Series], note: str, expected: bool = True, floor: float | None = 0, **more: Any
) -> Entry:
    return title, chart(title, series, note, floor=floor, **more), expected


def _line(
    run: RunRecord, title: str, key: str, note: str, expected: bool = True, share: bool = False, **more: Any
) -> Entry:
    points = run.series(key, 100.0 if share else 1.0)
    return _entry(title, _smoothed(points), note, expected, unit="%" if share else "", **more)


def _smoothed(points: list[Point]) -> list[Series]:
    return [Series("smoothed", smooth(points)), Series("each step", points, "faint")]


def _limit(points: list[Point], label: str) -> list[Series]:
    return [Series(label, points, "limit", 5)] if any(y is not None for _, y in points) else []


def _overlays(groups: list[SeedGroup]) -> Iterator[tuple[str, Chart | None]]:
    runs = [run for group in groups for run in group.runs]
    slowest = max((max(seconds_spent(run).values(), default=0.0) for run in runs), default=0.0)
    unit, per = ("seconds", 1.0) if slowest < 300 else ("minutes", 60.0) if slowest < 3 * 3600 else ("hours", 3600.0)

    def time(run: RunRecord) -> dict[float, float]:
        return {step: seconds / per for step, seconds in seconds_spent(run).items()}

    def smoothed(key: str) -> Callable[[RunRecord], list[Point]]:
        return lambda run: smooth(run.series(key))

    reward, title = smoothed("reward/mean"), "Held-out pass@1 by"
    yield _overlay(groups, "Reward by samples", reward)
    yield _overlay(groups, f"Reward by {unit}", reward, time, unit, note="in steps, without evaluation")
    yield _overlay(groups, f"{title} samples", eval_points, unit="%", dots=True)
    yield _overlay(groups, f"{title} {unit}", eval_points, time, unit, unit="%", dots=True)
    if any(run.setting("kl.coefficient") != 0 for run in runs):
        why = "no KL term in the recipe, or not recorded"
        yield _overlay(groups, "KL to the reference", smoothed("kl/ref"), why=why, note=NATS, floor=0)
    yield _overlay(groups, "KL moved", kl_moved, foot=MOVED, why=ON_POLICY, note=SUMMED, floor=0)
    yield _overlay(groups, "Entropy", smoothed("entropy"), note=NATS, floor=0)
    lengths = smoothed("completion/length_mean")
    yield _overlay(groups, "Completion length", lengths, note="tokens, mean", floor=0)
    if any(has_critic(run) for run in runs):
        explained, note = smoothed("value/explained_variance"), "of the returns, by the critic"
        yield _overlay(groups, "Explained variance", explained, expected=has_critic, note=note, ceiling=1.0)


def _overlay(
    groups: list[SeedGroup],
    title: str,
    line: Callable[[RunRecord], list[Point]],
    position: Callable[[RunRecord], dict[float, float]] = samples_seen,
    x_label: str = "samples",
    dots: bool = False,
    foot: str = "",
    why: str = "not recorded",
    expected: Callable[[RunRecord], bool] = lambda run: True,
    **more: Any,
) -> tuple[str, Chart | None]:
    """Return the title and a chart of `line` (step, value) per run, the steps moved to their `position`.

    Expected runs without values are named below it, with `why`; those not expected to have any are left out.
    """
    front: list[Series] = []
    behind: list[Series] = []
    without: list[RunRecord] = []
    for group in groups:
        lines = [(run, line(run)) for run in group.runs if expected(run)]
        without += [run for run, points in lines if all(y is None for _, y in points)]
        lines = [(run, points) for run, points in lines if run not in without]
        places = [position(run) for run, _ in lines]
        each = [[(place.get(x, 0.0), y) for x, y in points] for (_, points), place in zip(lines, places, strict=True)]
        mean = mean_line([points for _, points in lines], places) if len(lines) > 1 else []
        if mean:
            behind += [Series(group.label, points, "thin", group.color) for points in each]
        for points in [mean] if mean else each:
            front.append(Series(group.label, points, "other" if group.again else "line", group.color))
            if dots:
                front.append(Series(group.label, points, "points", group.color))
    absent = f"Not drawn: {names(groups, without)} ({why})." if without else ""
    foot = " ".join(part for part in (foot, absent) if part)
    return title, chart(title, [*behind, *front], x_label=x_label, named=True, foot=foot, **more)
