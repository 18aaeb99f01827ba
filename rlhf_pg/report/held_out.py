"""A run's held-out measurements, and the bars that show them."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import Any

from rlhf_pg.display.figures import BOUNDS, eval_names, number
from rlhf_pg.display.text import visible
from rlhf_pg.report.groups import Group
from rlhf_pg.report.groups import names as names_of
from rlhf_pg.report.run_data import Point, Run, section, series


@dataclass(frozen=True)
class Bar:
    """One bar; all numbers but the text are in percent of the axis."""

    label: str
    color: int
    value: float
    text: str
    low: float | None = None
    high: float | None = None
    before: float | None = None  # what it was before training


@dataclass(frozen=True)
class Bars:
    """Boxes of bars stand side by side; a group is a measure with one bar per run, or per time of measurement."""

    groups: list[tuple[str, list[Bar]]] = field(default_factory=list)
    note: str = ""
    wide: bool = False  # labels are names of runs


def evals(run: Run) -> tuple[tuple[str, dict[str, Any]], tuple[str, dict[str, Any]]]:
    """Two held-out measurements, each (when, figures).

    "before" and "after" from the summary; else the first and the last of metrics.jsonl, their "when" being "step 20".
    """
    logged = [
        (f"step {row['step']}", {k.removeprefix("eval/"): v for k, v in row.items() if k.startswith("eval/")})
        for row in run.steps
        if any(k.startswith("eval/") for k in row)
    ]
    before, after = section(run, "before"), section(run, "after")
    first = ("before", before) if before or len(logged) < 2 else logged[0]
    return first, ("after", after) if after or not logged else logged[-1]


def final(run: Run) -> tuple[str, dict[str, Any]]:
    """The measurement a run is judged by, and " (step 20)" if that is not the one after its last step."""
    when, figures = evals(run)[1]
    return "" if when == "after" else f" ({when})", figures


def eval_points(run: Run, name: str = "pass@1") -> list[Point]:
    """(step, percent) of every evaluation: before training at step 0, those logged, and after the last step."""
    points = {x: y for x, y in series(run, f"eval/{name}", 100.0)}
    last = float(run.steps[-1]["step"]) if run.steps else number(run.summary, "steps") or 0.0
    for step, part in ((0.0, "before"), (last, "after")):
        value = number(section(run, part), name)
        if value is not None and (step or part == "before"):
            points[step] = value * 100
    return sorted(points.items())


def bounds(run: Run, points: list[Point], name: str) -> list[tuple[float, float] | None]:
    """The interval in percent of each of `eval_points`, where it has one."""
    wanted = {step for step, _ in points}
    rows = [row for row in run.steps if row["step"] in wanted]
    by_step = {float(row["step"]): {k.removeprefix("eval/"): v for k, v in row.items()} for row in rows}
    if rows and rows[-1] is run.steps[-1]:
        by_step[float(run.steps[-1]["step"])] |= section(run, "after")
    by_step[0.0] = by_step.get(0.0, {}) | section(run, "before")
    out = []
    for step, _ in points:
        low, high = (number(by_step.get(step, {}), f"{name}{bound}") for bound in BOUNDS)
        out.append((low * 100, high * 100) if low is not None and high is not None else None)
    return out


def bars(run: Run) -> list[Bars]:
    """[pass@1: the first measurement and the last, pass@8: ...]; empty when nothing was evaluated."""
    both = evals(run)
    groups = []
    for name in eval_names(*(figures for _, figures in both)):
        group = [
            Bar(when, color, value, f"{value:.1f}%", *(as_percent(found, f"{name}{bound}") for bound in BOUNDS))
            for color, (when, found) in zip((8, 1), both, strict=True)
            if (value := as_percent(found, name)) is not None and 0 <= value <= 100
        ]
        if group:
            groups.append((f"held-out {visible(name)}", group))
    return [Bars(groups)] if groups else []


def compared(groups: list[Group]) -> Bars | None:
    """Final held-out figures of several recipes; of several seeds the mean, and how far they lie apart."""
    names = eval_names(*(final(run)[1] for group in groups for run in group.runs))
    shown = [
        (f"held-out {visible(name)}", [bar for group in groups if (bar := _final_bar(group, name))]) for name in names
    ]
    shown = [(label, found) for label, found in shown if found]
    if not shown:
        return None
    seeds = any(len(group.runs) > 1 for group in groups)
    whiskers = "lowest and highest seed, bar: their mean" if seeds else "95% interval over the problems"
    without = names_of(groups, [r for group in groups for r in group.runs if not eval_names(final(r)[1])])
    absent = f" Not evaluated: {without}." if without else ""
    return Bars(shown, f"Whiskers: {whiskers}. Upright line: before training.{absent}", wide=True)


def _final_bar(group: Group, name: str) -> Bar | None:
    found = [
        (when, figures, v) for when, figures in map(final, group.runs) if (v := as_percent(figures, name)) is not None
    ]
    found = [entry for entry in found if 0 <= entry[2] <= 100]
    if not found:
        return None
    values = [v for _, _, v in found]
    value = statistics.fmean(values)
    low, high = min(values), max(values)
    if len(group.runs) == 1:
        low, high = (as_percent(found[0][1], f"{name}{bound}") for bound in BOUNDS)
    before = [v for run in group.runs if (v := as_percent(section(run, "before"), name)) is not None]
    whens = "".join(sorted({when for when, _, _ in found}))
    return Bar(
        f"{group.label}{whens}",
        group.color,
        value,
        f"{value:.1f}%",
        low,
        high,
        statistics.fmean(before) if before else None,
    )


def percent(figures: dict[str, Any], name: str) -> str:
    value = as_percent(figures, name)
    return "–" if value is None else f"{value:.1f}%"


def interval(figures: dict[str, Any], name: str) -> str:
    """ "87.8 – 92.3", or "" when the figure has no interval."""
    low, high = (as_percent(figures, f"{name}{bound}") for bound in BOUNDS)
    return "" if low is None or high is None else f"{low:.1f} – {high:.1f}"


def as_percent(figures: dict[str, Any], name: str) -> float | None:
    value = number(figures, name)
    return value * 100 if value is not None and math.isfinite(value) else None
