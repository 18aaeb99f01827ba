"""Bars of held-out figures and of what runs cost."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

from rlhf_pg.display.figures import BOUNDS, eval_names
from rlhf_pg.display.text import visible
from rlhf_pg.report.measures import evaluations, final_evaluation, peak_memory, percent, step_seconds
from rlhf_pg.report.run_record import RunRecord
from rlhf_pg.report.seed_groups import SeedGroup, names

COST = "Memory: the most the process held, on the device if there is one. Seconds: the median, all phases of a step."


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
    """A box of bars: for each (heading, bars) one bar per run, or one per time of measurement."""

    groups: list[tuple[str, list[Bar]]] = field(default_factory=list)
    note: str = ""
    wide: bool = False  # labels are names of runs


def held_out(run: RunRecord) -> Bars | None:
    """Return the first and the last measurement of each figure; None when nothing was evaluated."""
    both = evaluations(run)
    groups = []
    for name in eval_names(*(figures for _, figures in both)):
        bars = [
            Bar(when, color, value, f"{value:.1f}%", *(percent(figures, f"{name}{bound}") for bound in BOUNDS))
            for color, (when, figures) in zip((8, 1), both, strict=True)
            if (value := percent(figures, name)) is not None and 0 <= value <= 100
        ]
        if bars:
            groups.append((f"held-out {visible(name)}", bars))
    return Bars(groups) if groups else None


def held_out_compared(groups: list[SeedGroup]) -> Bars | None:
    """Return the final held-out figures of several recipes; of several seeds the mean, and how far they lie apart."""
    runs = [run for group in groups for run in group.runs]
    labels = eval_names(*(final_evaluation(run)[1] for run in runs))
    measured = [(label, [bar for group in groups if (bar := _final_bar(group, label))]) for label in labels]
    measured = [(f"held-out {visible(label)}", bars) for label, bars in measured if bars]
    if not measured:
        return None
    seeds = any(len(group.runs) > 1 for group in groups)
    whiskers = "lowest and highest seed, bar: their mean" if seeds else "95% interval over the problems"
    without = names(groups, [run for run in runs if not eval_names(final_evaluation(run)[1])])
    absent = f" Not evaluated: {without}." if without else ""
    return Bars(measured, f"Whiskers: {whiskers}. Upright line: before training.{absent}", wide=True)


def cost_compared(groups: list[SeedGroup]) -> Bars | None:
    """Return peak memory and seconds per step of several recipes; of several seeds the mean."""
    measures: list[tuple[str, Callable[[RunRecord], float | None], str]] = [
        ("peak memory", peak_memory, "{:,.2f} GiB"),
        ("seconds per step", step_seconds, "{:.2f} s"),
    ]
    measured = [(label, bars) for label, measure, form in measures if (bars := _relative(groups, measure, form))]
    return Bars(measured, COST, wide=True) if measured else None


def _final_bar(group: SeedGroup, name: str) -> Bar | None:
    measured = [
        (when, figures, value)
        for when, figures in map(final_evaluation, group.runs)
        if (value := percent(figures, name)) is not None and 0 <= value <= 100
    ]
    if not measured:
        return None
    whens, figures, values = zip(*measured, strict=True)
    mean, low, high = statistics.fmean(values), min(values), max(values)
    if len(group.runs) == 1:
        low, high = (percent(figures[0], f"{name}{bound}") for bound in BOUNDS)
    before = group.each(lambda run: percent(run.evaluation("before"), name))
    label = group.label + "".join(sorted(set(whens)))
    return Bar(label, group.color, mean, f"{mean:.1f}%", low, high, statistics.fmean(before) if before else None)


def _relative(groups: list[SeedGroup], measure: Callable[[RunRecord], float | None], form: str) -> list[Bar]:
    """Return a bar per recipe whose length is relative to the longest."""
    means = [(group, statistics.fmean(values)) for group in groups if (values := group.each(measure))]
    longest = max((mean for _, mean in means), default=0.0)
    if longest <= 0:
        return []
    return [Bar(group.label, group.color, 100 * mean / longest, form.format(mean)) for group, mean in means]
