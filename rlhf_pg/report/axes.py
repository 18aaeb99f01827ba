"""Axes of a chart: from data to places in the box that the page stretches, and the round numbers beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rlhf_pg.display.figures import compact

BOX = 1000  # width and height in which paths are drawn
Point = tuple[float, float | None]  # x, y; None is a gap


@dataclass(frozen=True)
class Scale:
    """An axis from `low` to `high`."""

    low: float
    high: float

    def at(self, value: float) -> float:
        """Return the place in the box; values beyond an end lie just outside of it."""
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return min(max(share, -0.05), 1.05) * BOX

    def ticks(self, about: int = 5) -> list[tuple[float, str]]:
        """Return (percent of the axis, label) of round numbers; of an axis without length its one value, centred."""
        if self.low == self.high:
            return [(50.0, number_text(self.low, 1))]
        places, step = ticks(self.low, self.high, about)
        return [(self.at(p) / BOX * 100, number_text(p, step)) for p in places]


def fitted(
    values: Sequence[float], also: Sequence[float], floor: float | None, ceiling: float | None
) -> tuple[Scale, float | None]:
    """Return an axis for ascending `values`, `also` (ends of intervals, limits), `floor` and `ceiling`, with a margin.

    A few extreme values do not stretch it: then the highest value, which lies beyond its end, is returned as well.
    """
    low, high, beyond = min(values[0], *also, values[0]), max(values[-1], *also, values[-1]), None
    if usual_top(values) < high:
        high, beyond = max(usual_top(values), *also, -math.inf), high
        beyond = beyond if beyond > high else None
    low = min(low, floor) if floor is not None else low
    high = max(high, ceiling) if ceiling is not None else high
    if high - low < 1e-12 * max(abs(high), 1.0):
        pad = abs(high) * 0.1 or 1.0
        return Scale(low if low == floor else low - pad, high + pad), beyond
    pad = 0.04 * (high - low)
    return Scale(low if low == floor else low - pad, high if high == ceiling else high + pad), beyond


def usual_top(values: Sequence[float]) -> float:
    """Return where the axis of ascending values must end because the top 2 % are far off, infinity if they are not."""
    if len(values) < 20:
        return math.inf
    usual, low = values[math.ceil(len(values) * 0.98) - 1] - values[0], values[0]
    return low + 1.6 * usual if values[-1] - low > 8 * usual > 0 else math.inf


def ticks(low: float, high: float, about: int) -> tuple[list[float], float]:
    """Return round numbers inside [low, high], and their spacing: 1, 2 or 5 times a power of ten."""
    span = (high - low) / about if high > low else abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span))
    step = next((m * power for m in (1, 2, 5, 10) if m * power >= span * 0.999), 10 * power)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)], step


def number_text(value: float, step: float, unit: str = "") -> str:
    """Return `value` with the digits that tell values `step` apart; `step` 0: three significant digits."""
    if abs(value) >= 10_000 and not unit:
        return compact(value).replace(".0", "")
    digits = (
        max(0, -math.floor(math.log10(step) + 1e-9)) if step else max(0, 2 - math.floor(math.log10(abs(value) or 1)))
    )
    if digits > 5:
        return f"{value:.1e}"
    return f"{value:.{digits}f}{unit}"


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Return places in [0, 100] moved as little as needed to lie `gap` apart, in the same order; evenly if they cannot.

    Places that would overlap are joined to blocks, each centred on its members (pool adjacent violators).
    """
    order = sorted(range(len(places)), key=lambda i: places[i])
    gap = min(gap, 100 / max(len(places) - 1, 1))
    blocks: list[tuple[float, list[int]]] = []  # (where the first member stands, members)
    for i in order:
        start, members = min(max(places[i], 0.0), 100.0), [i]
        while blocks and start < blocks[-1][0] + gap * len(blocks[-1][1]):
            members = blocks.pop()[1] + members
            centred = sum(places[m] - gap * n for n, m in enumerate(members)) / len(members)
            start = min(max(centred, 0.0), 100.0 - gap * (len(members) - 1))
        blocks.append((start, members))
    moved = [0.0] * len(places)
    for start, members in blocks:
        for n, m in enumerate(members):
            moved[m] = start + gap * n
    return moved
