"""Curves of several runs over each other: each recipe one colour, its seeds thin lines, their mean a bold one."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Literal

from rlhf_pg.report.charts import Chart, Series, chart, smooth
from rlhf_pg.report.facts import has_critic, kl_moved
from rlhf_pg.report.groups import Group, names
from rlhf_pg.report.held_out import eval_points
from rlhf_pg.report.run_data import Point, Run, dig, samples_seen, seconds_spent, series

MOVED = (
    "A path added up, not the distance from the start. A trust region measures it after its step; other updates as the "
    "mean over their optimizer steps, each before it is taken."
)
SUMMED = "KL(old || new) of each rollout step, summed; nats per token"
ON_POLICY = "not measured; with one optimizer step per rollout, taken where it sampled, it cannot be"


def overlays(groups: list[Group]) -> tuple[list[Chart], list[str]]:
    """The charts of several runs, and the titles of those for which no run has data."""
    runs = [run for group in groups for run in group.runs]
    unit, per = time_unit(runs)

    def seconds(run: Run) -> dict[float, float]:
        return {step: s / per for step, s in seconds_spent(run).items()}

    axes = [("samples", samples_seen), (unit, seconds)]
    smoothed = lambda key: lambda run: smooth(series(run, key))  # noqa: E731
    found: dict[str, Chart | None] = {}
    for label, position in axes:
        title, note = f"Reward by {label}", "" if position is samples_seen else "in steps, without evaluation"
        found[title] = _overlay(groups, title, smoothed("reward/mean"), position, label, note)
    for label, position in axes:
        title = f"Held-out pass@1 by {label}"
        found[title] = _overlay(groups, title, eval_points, position, label, unit="%", dots=True)
    by_samples = lambda title, line, **more: _overlay(groups, title, line, samples_seen, "samples", **more)  # noqa: E731
    nats = "nats per token"
    if any(dig(run.config, "kl.coefficient") != 0 for run in runs):
        found["KL to the reference"] = by_samples(
            "KL to the reference",
            smoothed("kl/ref"),
            note=nats,
            floor=0,
            why="no KL term in the recipe, or not recorded",
        )
    found["KL moved"] = by_samples("KL moved", kl_moved, note=SUMMED, floor=0, foot=MOVED, why=ON_POLICY)
    found["Entropy"] = by_samples("Entropy", smoothed("entropy"), note=nats, floor=0)
    lengths = smoothed("completion/length_mean")
    found["Completion length"] = by_samples("Completion length", lengths, note="tokens, mean", floor=0)
    if any(has_critic(run) for run in runs):
        found["Explained variance"] = by_samples(
            "Explained variance",
            smoothed("value/explained_variance"),
            note="of the returns, by the critic",
            ceiling=1.0,
            asked=has_critic,
        )
    return [c for c in found.values() if c], [title for title, c in found.items() if c is None]


def time_unit(runs: list[Run]) -> tuple[str, float]:
    """("minutes", 60.0): the unit in which the slowest run's seconds in steps are told."""
    slowest = max((max(seconds_spent(run).values(), default=0.0) for run in runs), default=0.0)
    return ("seconds", 1.0) if slowest < 300 else ("minutes", 60.0) if slowest < 3 * 3600 else ("hours", 3600.0)


def mean_line(lines: list[list[Point]], places: list[dict[float, float]]) -> list[Point]:
    """The mean of several (step, value) lines, step by step: mean place, mean value, where all of them have one."""
    known = [{step: y for step, y in line if y is not None} for line in lines]
    shared = sorted(set.intersection(*(set(k) for k in known))) if known else []
    return [
        (statistics.fmean(at.get(step, 0.0) for at in places), statistics.fmean(k[step] for k in known))
        for step in shared
    ]


def _overlay(
    groups: list[Group],
    title: str,
    line: Callable[[Run], list[Point]],
    position: Callable[[Run], dict[float, float]],
    x_label: str,
    note: str = "",
    unit: Literal["", "%"] = "",
    floor: float | None = None,
    ceiling: float | None = None,
    dots: bool = False,
    foot: str = "",
    why: str = "not recorded",
    asked: Callable[[Run], bool] = lambda run: True,
) -> Chart | None:
    """One chart of `line` (step, value) per run, the steps moved to their `position`.

    Runs without values are named below it, with `why`; those not `asked` for are none of it.
    """
    drawn: list[Series] = []
    behind: list[Series] = []
    without: list[Run] = []
    for group in groups:
        runs = [run for run in group.runs if asked(run)]
        lines = {run.name: line(run) for run in runs}
        without += [run for run in runs if all(y is None for _, y in lines[run.name])]
        having = [run for run in runs if run not in without]
        places = [position(run) for run in having]
        each = [[(at.get(x, 0.0), y) for x, y in lines[r.name]] for r, at in zip(having, places, strict=True)]
        mean = mean_line([lines[run.name] for run in having], places) if len(having) > 1 else []
        kind = "other" if group.again else "line"
        if mean:
            behind += [Series(group.label, points, "thin", group.color) for points in each]
        for points in [mean] if mean else each:
            drawn.append(Series(group.label, points, kind, group.color))
            if dots:
                drawn.append(Series(group.label, points, "points", group.color))
    absent = f"Not drawn: {names(groups, without)} ({why})." if without else ""
    foot = " ".join(part for part in (foot, absent) if part)
    return chart(title, [*behind, *drawn], note, unit, x_label, floor, ceiling, named=True, foot=foot)
