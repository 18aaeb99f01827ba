"""Charts as data: from series to SVG paths and axis labels in percent, which the page's template draws.

Paths lie in a 1000 x 1000 box that the page stretches to any width; labels are HTML beside it, so that text is as large
on a phone as on a screen. This file makes no markup; the template escapes every text.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

from rlhf_pg.report.axes import BOX, Point, Scale, fitted, number_text, spread, ticks, usual_top

COLUMNS = 1000  # a longer series is drawn by the lowest and highest value of so many columns
HOVERS = 160
END_GAP = 7.5  # percent of the height between two labels at the end of lines
Kind = Literal["line", "other", "faint", "thin", "limit", "area", "points"]
LINES = ("line", "other")


@dataclass(frozen=True)
class Series:
    """A line, an area or points. `bounds` (points only): (low, high) per point.

    `faint` is the raw form of a smoothed line, `thin` one of several of which a line is the mean, `other` a line whose
    colour another one has already, `limit` a value not to be passed.
    """

    label: str
    points: list[Point]
    kind: Kind = "line"
    color: int = 1  # 1 to 8, a colour of the page
    bounds: list[tuple[float, float] | None] = field(default_factory=list)


@dataclass(frozen=True)
class Mark:
    """One SVG path."""

    kind: str
    color: int
    path: str


@dataclass(frozen=True)
class Chart:
    title: str
    note: str
    latest: str
    latest_label: str  # what the latest value is, such as "smoothed"
    x: Scale
    y: Scale
    unit: str
    always_zero: bool
    marks: list[Mark]
    hovers: list[tuple[float, float, str]]  # left, width, text
    x_ticks: list[tuple[float, str]]  # percent from the left, label
    y_ticks: list[tuple[float, str]]  # percent from the top, label
    legend: list[tuple[str, str, int]]  # kind, label, colour
    x_label: str = "step"
    ends: list[tuple[float, str, str, int]] = field(default_factory=list)  # percent from the top, kind, label, colour
    foot: str = ""


def chart(
    title: str,
    series: Sequence[Series],
    note: str = "",
    unit: Literal["", "%"] = "",
    x_label: str = "step",
    floor: float | None = None,
    ceiling: float | None = None,
    named: bool = False,
    foot: str = "",
) -> Chart | None:
    """Lay out series on common axes. Return None when no series has a finite value, so that no empty chart is shown.

    Points ascend in x. `floor` and `ceiling` are values the axis must include. A few extreme values do not flatten the
    rest: the axis then ends below them and the note says so. `named`: even a lone line is named, each at its end.
    """
    series = [s for s in series if any(y is not None for _, y in s.points)]
    if not series:
        return None
    xs = [x for s in series for x, _ in s.points]
    x = Scale(min(xs), max(xs))
    y, beyond = _y_scale(series, floor, ceiling)
    y_ticks, step = ticks(y.low, y.high, 5)
    clipped = [f"the axis ends below the highest value, {number_text(beyond, 0, unit)}"] if beyond is not None else []
    main = next((s for s in series if s.kind in LINES), series[0])
    needs_legend = named or len({s.color for s in series}) > 1 or any(s.kind == "area" for s in series)
    return Chart(
        title=title,
        note="; ".join([*([note] if note else []), *clipped]),
        latest="" if needs_legend else number_text(_last(main), step / 10, unit),
        latest_label="" if needs_legend or main.kind not in LINES else main.label,
        x=x,
        y=y,
        unit=unit,
        always_zero=not any(y for s in series for _, y in s.points),
        marks=[mark for s in series for mark in _marks(s, x, y)],
        hovers=_hovers(series, x, step, unit, x_label),
        x_ticks=x.ticks(),
        y_ticks=[(100 - y.at(t) / BOX * 100, number_text(t, step, unit)) for t in y_ticks],
        legend=_legend(series) if needs_legend else [],
        x_label=x_label,
        ends=_ends(series, y) if named else [],
        foot=foot,
    )


def stacked(
    title: str, layers: Sequence[tuple[str, list[Point], int]], note: str = "", share: bool = True
) -> Chart | None:
    """Lay out (label, points, colour) as areas on top of each other; with `share` each step is scaled to 100%."""
    layers = [layer for layer in layers if any(y for _, y in layer[1])]
    steps = sorted({x for _, points, _ in layers for x, y in points if y is not None})
    if len(steps) < 2:
        return None
    heights = [{x: max(y or 0.0, 0.0) for x, y in points} for _, points, _ in layers]
    size = math.ceil(len(steps) / COLUMNS)
    columns = [steps[i : i + size] for i in range(0, len(steps), size)]
    sums = [sum(height.get(x, 0.0) for height in heights for x in column) for column in columns]
    divisors = [(total or 1.0) / 100 if share else len(c) for total, c in zip(sums, columns, strict=True)]
    centres = [sum(column) / len(column) for column in columns]
    base = [0.0] * len(columns)
    areas = []
    for (label, _, color), height in zip(layers, heights, strict=True):
        added = [sum(height.get(x, 0.0) for x in c) / d for c, d in zip(columns, divisors, strict=True)]
        top = [below + more for below, more in zip(base, added, strict=True)]
        outline: list[Point] = [*zip(centres, top, strict=True), *reversed([*zip(centres, base, strict=True)])]
        areas.append(Series(label, outline, "area", color))
        base = top
    return chart(title, areas, note, unit="%" if share else "", floor=0, ceiling=100 if share else None)


def smooth(points: list[Point], share: float = 0.05) -> list[Point]:
    """Return the exponential mean over about `share` of the series (at least 3 steps), bias-corrected; gaps stay gaps.

    Extreme values count as the end of the axis, so that a spike does not drag the curve behind it.
    """
    limit = usual_top(sorted(y for _, y in points if y is not None))
    decay = 1 - 2 / (max(len(points) * share, 3.0) + 1)
    mean, weight = 0.0, 0.0
    means: list[Point] = []
    for x, y in points:
        if y is not None:
            mean, weight = decay * mean + (1 - decay) * min(y, limit), decay * weight + (1 - decay)
        means.append((x, None if y is None else mean / weight))
    return means


def _legend(series: Sequence[Series]) -> list[tuple[str, str, int]]:
    """Return (kind, label, colour) once per label, by its line if it has one."""
    first: dict[str, Series] = {}
    for s in sorted(series, key=lambda s: s.kind == "thin"):
        first.setdefault(s.label, s)
    return [(s.kind, s.label, s.color) for s in first.values()]


def _ends(series: Sequence[Series], y: Scale) -> list[tuple[float, str, str, int]]:
    """Return (percent from the top, kind, label, colour) beside the last value of every line, none over another."""
    lines = [s for s in series if s.kind in LINES]
    tops = spread([100 - y.at(_last(s)) / BOX * 100 for s in lines], END_GAP)
    return [(top, s.kind, s.label, s.color) for top, s in zip(tops, lines, strict=True)]


def _last(s: Series) -> float:
    return next(v for _, v in reversed(s.points) if v is not None)


def _y_scale(series: Sequence[Series], floor: float | None, ceiling: float | None) -> tuple[Scale, float | None]:
    raw = [s for s in series if s.kind == "faint"] or [s for s in series if s.kind != "limit"] or series
    values = sorted(y for s in raw for _, y in s.points if y is not None)
    limits = [y for s in series if s.kind == "limit" for _, y in s.points if y is not None]
    return fitted(values, [*limits, *(v for s in series for pair in s.bounds if pair for v in pair)], floor, ceiling)


def _marks(s: Series, x: Scale, y: Scale) -> list[Mark]:
    points = [(x.at(px), BOX - y.at(py) if py is not None else None) for px, py in s.points]
    if s.kind in ("area", "points"):
        places = [f"{px:.1f} {py:.1f}" for px, py in points if py is not None]
        if s.kind == "area":
            return [Mark("area", s.color, "M" + "L".join(places) + "Z")]
        pairs = [(px, b) for (px, _), b in zip(points, s.bounds, strict=False) if b]
        whiskers = "".join(f"M{px:.1f} {BOX - y.at(low):.1f}V{BOX - y.at(high):.1f}" for px, (low, high) in pairs)
        paths = [("bar", whiskers), ("dot", "".join(f"M{place}h0" for place in places))]
    else:
        pieces = [[f"{px:.1f} {py:.1f}" for px, py in piece] for piece in _unbroken(_thinned(points))]
        lines = "".join("M" + "L".join(piece) for piece in pieces if len(piece) > 1)
        single = "".join(f"M{piece[0]}h0" for piece in pieces if len(piece) == 1)
        paths = [(s.kind, lines), ("dot", single)]
    return [Mark(kind, s.color, path) for kind, path in paths if path]


def _thinned(points: list[Point]) -> list[Point]:
    """Return at most two points a column, its lowest and highest in order; a column without values stays a gap."""
    if len(points) <= 2 * COLUMNS:
        return points
    size, thinned = math.ceil(len(points) / COLUMNS), []
    for start in range(0, len(points), size):
        column = points[start : start + size]
        full = [(px, py) for px, py in column if py is not None]
        ends = {min(full, key=lambda p: p[1]), max(full, key=lambda p: p[1])} if full else column[:1]
        thinned += sorted(ends)
    return thinned


def _unbroken(points: list[Point]) -> list[list[tuple[float, float]]]:
    """Return the pieces of a line between its gaps."""
    pieces = groupby(points, key=lambda point: point[1] is None)
    return [[(px, py) for px, py in piece if py is not None] for gap, piece in pieces if not gap]


def _hovers(series: Sequence[Series], x: Scale, step: float, unit: str, x_label: str) -> list[tuple[float, float, str]]:
    """Return invisible strips over the chart, (left, width, the values nearest to its middle)."""
    lines = [s for s in series if s.kind not in ("area", "thin")]
    values = [(s.label, [(px, py) for px, py in s.points if py is not None]) for s in lines]
    if not values or x.high == x.low:
        return []
    count = min(HOVERS, max(len(points) for _, points in values))
    reach = (x.high - x.low) / count
    strips = []
    for i in range(count):
        near = [(label, _nearest(points, x.low + reach * (i + 0.5), reach)) for label, points in values]
        texts = [
            f"{label}: {number_text(point[1], step / 10, unit)} ({x_label} {number_text(point[0], 1)})"
            for label, point in near
            if point
        ]
        if texts:
            strips.append((i * BOX / count, BOX / count, "\n".join(texts)))
    return strips


def _nearest(points: list[tuple[float, float]], at: float, reach: float) -> tuple[float, float] | None:
    i = bisect.bisect_left(points, (at, -math.inf))
    nearest = min(points[max(i - 1, 0) : i + 1], key=lambda p: abs(p[0] - at), default=None)
    return nearest if nearest and abs(nearest[0] - at) <= reach else None
