"""Bars of what several recipes took: memory, and the seconds of a step."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from rlhf_pg.report import facts
from rlhf_pg.report.groups import Group
from rlhf_pg.report.held_out import Bar, Bars
from rlhf_pg.report.run_data import Run

NOTE = "Memory: the most the process held, on the device if there is one. Seconds: the median, all phases of a step."


def compared(groups: list[Group]) -> Bars | None:
    """Peak memory and seconds per step, one bar per recipe; of several seeds the mean."""
    measures: list[tuple[str, Callable[[Run], float | None], str]] = [
        ("peak memory", facts.peak_memory_mb, "{:,.0f} MB"),
        ("seconds per step", facts.step_seconds, "{:.2f} s"),
    ]
    shown = [(label, _bars(groups, figure, form)) for label, figure, form in measures]
    shown = [(label, found) for label, found in shown if found]
    return Bars(shown, NOTE, wide=True) if shown else None


def _bars(groups: list[Group], figure: Callable[[Run], float | None], form: str) -> list[Bar]:
    """Lengths relative to the longest; a memory bar tells whether there is a critic."""
    found = [(group, statistics.fmean(each)) for group in groups if (each := group.each(figure))]
    longest = max((value for _, value in found), default=0.0)
    if longest <= 0:
        return []
    return [Bar(group.label, group.color, 100 * value / longest, form.format(value)) for group, value in found]
