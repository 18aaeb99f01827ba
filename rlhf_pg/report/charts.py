"""Charts as data: from series to SVG paths and axis labels in percent, which the page's template draws.

Paths live in a 1000 x 1000 box that the page stretches to any width; labels are HTML beside it, so text never shrinks
on a phone. Everything here is numbers and titles: no markup is made, the template escapes every text.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from rlhf_pg.report.axes import BOX, Scale, fitted, number_text, spread, ticks, usual_top

Point = tuple[float, float | None]
COLUMNS = 300  # a longer series is drawn by the lowest and highest value of so many columns
HOVERS = 80
END_GAP = 7.5  # percent of the height between two labels at the end of lines
Kind = Literal["line", "other", "faint", "thin", "limit", "area", "points"]
LINES = ("line", "other")


@dataclass(frozen=True)
class Series:
    """One thing drawn. `y` None is a gap. `bounds` (points only): (low, high) per point.

    `faint` is the raw form of a smoothed line, `thin` one of several of which a line is the mean, `other` a line whose
    colour is taken already, `limit` a value not to be passed.
    """

    label: str
    points: list[Point]
    kind: Kind = "line"
    color: int = 1  # 1 to 8, a colour of the page
    bounds: list[tuple[float, float] | None] = field(default_factory=list)


@dataclass(frozen=True)
class Mark:
    """One SVG path, or with `text` one spot that tells its values when pointed at."""

    kind: str
    color: int
    path: str
    text: str = ""


@dataclass(frozen=True)
class Chart:
    title: str
    note: str
    latest: str
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
    """Lay out series on common axes; None when no series has a finite value, so that no empty chart is shown.

    Points ascend in x. `floor` and `ceiling` are values the axis must include. A few extreme values do not flatten the
    rest: the axis then ends below them and the note says so. `named`: even a lone line is named, each at its end.
    """
    drawn = [s for s in series if any(y is not None for _, y in s.points)]
    if not drawn:
        return None
    xs = [x for s in drawn for x, _ in s.points]
    x = Scale(min(xs), max(xs))
    y, beyond = _y_scale(drawn, floor, ceiling)
    y_ticks, step = ticks(y.low, y.high, 5)
    clipped = [f"the axis ends below the highest value, {number_text(beyond, 0, unit)}"] if beyond is not None else []
    main = next((s for s in drawn if s.kind in LINES), drawn[0])
    return Chart(
        title=title,
        note="; ".join([*([note] if note else []), *clipped]),
        latest=number_text(_last(main), step / 10, unit) if _lone(drawn) and not named else "",
        marks=[mark for s in drawn for mark in _marks(s, x, y)],
        hovers=_hovers(drawn, x, step, unit, x_label),
        x_ticks=x.ticks(),
        y_ticks=[(100 - y.at(t) / BOX * 100, number_text(t, step, unit)) for t in y_ticks],
        legend=[] if _lone(drawn) and not named else _legend(drawn),
        x_label=x_label,
        ends=_ends(drawn, y) if named else [],
        foot=foot,
    )


def stacked(
    title: str, layers: Sequence[tuple[str, list[Point], int]], note: str = "", share: bool = True
) -> Chart | None:
    """Areas on top of each other; with `share` each step is scaled to 100%. Layers are (label, points, colour)."""
    layers = [layer for layer in layers if any(y for _, y in layer[1])]
    steps = sorted({x for _, points, _ in layers for x, y in points if y is not None})
    if len(steps) < 2:
        return None
    heights = [{x: max(y or 0.0, 0.0) for x, y in points} for _, points, _ in layers]
    columns = _columns(steps)
    base = [0.0] * len(columns)
    sums = [sum(h.get(x, 0.0) for h in heights for x in column) for column in columns]
    out = []
    for (label, _, color), height in zip(layers, heights, strict=True):
        means = [sum(height.get(x, 0.0) for x in column) for column in columns]
        over = [(t or 1.0) / 100 if share else len(c) for t, c in zip(sums, columns, strict=True)]
        top = [b + m / o for b, m, o in zip(base, means, over, strict=True)]
        edge = [(sum(c) / len(c), t) for c, t in zip(columns, top, strict=True)]
        under = [(x, b) for (x, _), b in zip(edge, base, strict=True)]
        out.append(Series(label, [*edge, *reversed(under)], "area", color))
        base = top
    return chart(title, out, note, unit="%" if share else "", floor=0, ceiling=100 if share else None)


def smooth(points: list[Point], share: float = 0.05) -> list[Point]:
    """Exponential mean over about `share` of the series (at least 3 steps), bias-corrected; gaps stay gaps.

    Extreme values count as the end of the axis, so that a spike does not drag the curve behind it.
    """
    limit = usual_top(sorted(y for _, y in points if y is not None))
    decay = 1 - 2 / (max(len(points) * share, 3.0) + 1)
    mean, weight, out = 0.0, 0.0, []
    for x, y in points:
        if y is None:
            out.append((x, None))
            continue
        mean, weight = decay * mean + (1 - decay) * min(y, limit), decay * weight + (1 - decay)
        out.append((x, mean / weight))
    return out


def _legend(drawn: Sequence[Series]) -> list[tuple[str, str, int]]:
    """(kind, label, colour) once per label, by its line if it has one."""
    first: dict[str, Series] = {}
    for s in sorted(drawn, key=lambda s: s.kind == "thin"):
        first.setdefault(s.label, s)
    return [(s.kind, s.label, s.color) for s in first.values()]


def _lone(drawn: Sequence[Series]) -> bool:
    """One subject: a line, its raw values faint behind it, its points; no legend is needed."""
    return len({s.color for s in drawn}) == 1 and all(s.kind != "area" for s in drawn)


def _ends(drawn: Sequence[Series], y: Scale) -> list[tuple[float, str, str, int]]:
    """(percent from the top, kind, label, colour) beside the last value of every line, none over another."""
    lines = [s for s in drawn if s.kind in LINES]
    tops = spread([100 - y.at(_last(s)) / BOX * 100 for s in lines], END_GAP)
    return [(top, s.kind, s.label, s.color) for top, s in zip(tops, lines, strict=True)]


def _last(s: Series) -> float:
    return next(v for _, v in reversed(s.points) if v is not None)


def _y_scale(drawn: Sequence[Series], floor: float | None, ceiling: float | None) -> tuple[Scale, float | None]:
    raw = [s for s in drawn if s.kind == "faint"] or [s for s in drawn if s.kind != "limit"] or drawn
    values = sorted(y for s in raw for _, y in s.points if y is not None)
    limits = [y for s in drawn if s.kind == "limit" for _, y in s.points if y is not None]
    return fitted(values, [*limits, *(v for s in drawn for pair in s.bounds if pair for v in pair)], floor, ceiling)


def _marks(s: Series, x: Scale, y: Scale) -> list[Mark]:
    points = [(x.at(px), BOX - y.at(py) if py is not None else None) for px, py in s.points]
    if s.kind == "area":
        corners = [f"{px:.1f} {py:.1f}" for px, py in points if py is not None]
        return [Mark("area", s.color, "M" + "L".join(corners) + "Z")]
    if s.kind == "points":
        dots = "".join(f"M{px:.1f} {py:.1f}h0" for px, py in points if py is not None)
        marks = [Mark("dot", s.color, dots)]
        pairs = [(px, b) for (px, _), b in zip(points, s.bounds, strict=False) if b]
        bars = "".join(f"M{px:.1f} {BOX - y.at(low):.1f}V{BOX - y.at(high):.1f}" for px, (low, high) in pairs)
        return [Mark("bar", s.color, bars), *marks] if bars else marks
    runs = _unbroken(_thinned(points))
    lone = "".join(f"M{r[0][0]:.1f} {r[0][1]:.1f}h0" for r in runs if len(r) == 1)
    lines = "".join("M" + "L".join(f"{px:.1f} {py:.1f}" for px, py in r) for r in runs if len(r) > 1)
    return [Mark(kind, s.color, path) for kind, path in ((s.kind, lines), ("dot", lone)) if path]


def _thinned(points: list[Point]) -> list[Point]:
    """At most two points a column, its lowest and highest in order; a column without values stays a gap."""
    if len(points) <= 2 * COLUMNS:
        return points
    size, out = math.ceil(len(points) / COLUMNS), []
    for start in range(0, len(points), size):
        column = points[start : start + size]
        full = [(px, py) for px, py in column if py is not None]
        if not full:
            out.append(column[0])
            continue
        ends = {min(full, key=lambda p: p[1]), max(full, key=lambda p: p[1])}
        out += sorted(ends)
    return out


def _unbroken(points: list[Point]) -> list[list[tuple[float, float]]]:
    runs: list[list[tuple[float, float]]] = [[]]
    for px, py in points:
        if py is None:
            runs.append([])
        else:
            runs[-1].append((px, py))
    return [run for run in runs if run]


def _columns(steps: list[float]) -> list[list[float]]:
    size = math.ceil(len(steps) / COLUMNS)
    return [steps[i : i + size] for i in range(0, len(steps), size)]


def _hovers(drawn: Sequence[Series], x: Scale, step: float, unit: str, x_label: str) -> list[tuple[float, float, str]]:
    """Invisible strips over the chart, each telling the values nearest to its middle."""
    told = [s for s in drawn if s.kind not in ("area", "thin")]
    shown = [(s.label, [(px, py) for px, py in s.points if py is not None]) for s in told]
    if not shown or x.high == x.low:
        return []
    count = min(HOVERS, max(len(points) for _, points in shown))
    reach = (x.high - x.low) / count
    strips = []
    for i in range(count):
        near = [(label, _nearest(points, x.low + reach * (i + 0.5), reach)) for label, points in shown]
        lines = [
            f"{label}: {number_text(found[1], step / 10, unit)} ({x_label} {number_text(found[0], 1)})"
            for label, found in near
            if found
        ]
        if lines:
            strips.append((i * BOX / count, BOX / count, "\n".join(lines)))
    return strips


def _nearest(points: list[tuple[float, float]], at: float, reach: float) -> tuple[float, float] | None:
    i = bisect.bisect_left(points, (at, -math.inf))
    found = min(points[max(i - 1, 0) : i + 1], key=lambda p: abs(p[0] - at), default=None)
    return found if found and abs(found[0] - at) <= reach else None
