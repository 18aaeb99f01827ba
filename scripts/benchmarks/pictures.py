"""One picture per mode: out/step.png, out/rollout.png, ..."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from benchmarks.modes import PARTS

Found = dict[str, Any]
OURS, OTHER, DOT = "#2f6db3", "#c3c9d1", "#1d2733"
LABELS = {
    "G": "samples per prompt, G",
    "P": "prompt tokens, P",
    "C": "completion tokens, C",
    "parameters": "parameters",
}
LINES = {
    "seconds": ("step", OURS, "o-"),
    "rollout_s": ("rollout", "#e0a458", "s--"),
    "update_s": ("update", "#7a8b5c", "^--"),
}
COLORS = ("#2f6db3", "#8fb8de", "#e0a458", "#c4683c", "#7a8b5c", "#d0d4d9")


def step(found: Sequence[Found]) -> Figure:
    """Seconds above, peak memory below, a column per shape."""
    figure, axes = _grid(2, len(found), [f["contenders"] for f in found])
    for (above, below), one in zip(axes.T, found, strict=True):
        entries = one["contenders"]
        _bars(above, entries, [e["seconds"]["median"] for e in entries], "{:.2f}", _each(entries, "seconds"))
        _bars(below, entries, [e["peak_above_imports_mb"] for e in entries], "{:,.0f}")
        above.set(title=one["shape"], xlabel="seconds per step")
        below.set(xlabel="peak memory above imports, MiB")
    return _clean(figure, axes)


def rollout(found: Sequence[Found]) -> Figure:
    figure, axes = _grid(1, len(found), [f["contenders"] for f in found])
    for panel, one in zip(axes[0], found, strict=True):
        entries = one["contenders"]
        each = [[r["tokens"] / r["seconds"] for r in e["rounds"]] for e in entries]
        _bars(panel, entries, [e["tokens_per_s"]["median"] for e in entries], "{:,.0f}", each)
        panel.set(title=one["shape"], xlabel="tokens per second")
    return _clean(figure, axes)


def update(found: Sequence[Found]) -> Figure:
    """Three rates a shape: the update's, its own layers', a large square's."""
    figure, axes = _grid(1, len(found), [[1, 2, 3]] * len(found))
    names = ("update", "products of its layers", "large square product")
    for panel, one in zip(axes[0], found, strict=True):
        rates = [one["gflops"], one["layers_gflops"], one["square_gflops"]]
        _bars(panel, [{"name": name} for name in names], rates, "{:,.0f}", first=OURS)
        panel.set(title=f"{one['shape']}: {one['share_of_layers']:.0%} of its layers'", xlabel="GFLOP/s")
    return _clean(figure, axes)


def overhead(found: Sequence[Found]) -> Figure:
    """A bar per shape, cut into the parts of a step."""
    figure, panel = plt.subplots(figsize=(8, 1.3 + 0.5 * len(found)), layout="constrained")
    for at, one in enumerate(found[::-1]):
        whole, left = one["seconds"]["seconds"]["median"], 0.0
        for color, part in zip(COLORS, PARTS, strict=False):
            width = one["seconds"][part]["median"] / whole
            panel.barh(at, width, left=left, color=color, label=part.removesuffix("_s") if at == 0 else None)
            left += width
        panel.barh(at, max(0.0, 1 - left), left=left, color=COLORS[-1], label="outside" if at == 0 else None)
        panel.text(1.01, at, f"{one['share_outside']['median']:.1%} outside", va="center", fontsize=9)
    panel.set(
        yticks=range(len(found)),
        yticklabels=[one["shape"] for one in found[::-1]],
        xlim=(0, 1),
        xlabel="share of a step",
    )
    figure.legend(loc="outside upper center", ncols=len(PARTS) + 1, frameon=False, fontsize=9)
    panel.spines[["top", "right"]].set_visible(False)
    return figure


def memory(found: Found) -> Figure:
    """The scoring pass; the peaks of whole steps are in step.png."""
    entries = found["scoring"]["contenders"]
    figure, axes = _grid(1, 1, [entries], width=7)
    _bars(axes[0][0], entries, [e["peak_above_loaded_mb"] for e in entries], "{:,.0f}")
    of = found["scoring"]["of"]
    title = (
        f"scoring {of['prompts'] * of['samples']} rows of {of['completion']} tokens, V {of['model']['vocabulary']:,}"
    )
    axes[0][0].set(title=title, xlabel="peak memory above the loaded model, MiB")
    return _clean(figure, axes)


def scaling(found: Sequence[Found]) -> Figure:
    """A panel per number that grows, all on one scale of seconds."""
    size = (3.2 * len(found), 3)
    figure, axes = plt.subplots(1, len(found), figsize=size, squeeze=False, sharey=True, layout="constrained")
    for panel, one in zip(axes[0], found, strict=True):
        at = [point["at"] for point in one["points"]]
        for key, (label, color, style) in LINES.items():
            panel.plot(at, [p[key]["median"] for p in one["points"]], style, color=color, label=label, markersize=4)
        panel.set(xscale="log", yscale="log", xlabel=LABELS[one["over"]])
        large = one["over"] == "parameters"
        panel.set_xticks(at, [f"{value / 1e6:.0f}M" if large else str(value) for value in at])
        panel.xaxis.set_minor_locator(NullLocator())
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("seconds")
    axes[0][0].legend(frameon=False, fontsize=8)
    return figure


def ladder(found: Sequence[Found]) -> Figure:
    figure, axes = _grid(1, len(found), [f["seconds"] for f in found], width=5.2)
    for panel, one in zip(axes[0], found, strict=True):
        entries = [{"name": name, "rounds": one["rounds"][name]} for name in one["seconds"]]
        medians = [s["median"] for s in one["seconds"].values()]
        _bars(panel, entries, medians, "{:.2f}", _each(entries, "seconds"), first=OTHER)
        panel.set(title=one["shape"], xlabel="seconds per update")
    return _clean(figure, axes)


PICTURES: dict[str, Callable[[Any], Figure]] = {
    "step": step,
    "rollout": rollout,
    "update": update,
    "overhead": overhead,
    "memory": memory,
    "scaling": scaling,
    "ladder": ladder,
}


def draw(mode: str, found: Any, folder: Path) -> Path | None:
    """Draw what a mode found into the folder; None when nothing was found."""
    if not found:
        return None
    figure, path = PICTURES[mode](found), folder / f"{mode}.png"
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def _bars(
    panel: Axes,
    entries: Sequence[Found],
    values: Sequence[float],
    form: str,
    each: Sequence[Sequence[float]] = (),
    first: str = OURS,
) -> None:
    """A bar per contender from the top down, the first in its own color, its value beside it, a dot per round."""
    places = range(len(entries))[::-1]
    panel.barh(places, values, color=[first] + [OTHER] * (len(entries) - 1), height=0.65)
    for place, dots in zip(places, each, strict=False):
        panel.plot(dots, [place] * len(dots), ".", color=DOT, markersize=3, alpha=0.7)
    longest = max([*values, *(x for dots in each for x in dots)])
    for place, value, dots in zip(places, values, each or [[]] * len(values), strict=True):
        panel.text(max([value, *dots]) + 0.02 * longest, place, form.format(value), va="center", fontsize=8)
    panel.xaxis.set_major_locator(MaxNLocator(5))
    panel.set(yticks=places, yticklabels=[e["name"] for e in entries], xlim=(0, 1.22 * longest))


def _each(entries: Sequence[Found], key: str) -> list[list[float]]:
    return [[r[key] for r in e["rounds"]] for e in entries]


def _grid(rows: int, columns: int, entries: Sequence[Any], width: float = 4.2) -> tuple[Figure, Any]:
    height = 0.9 + 0.32 * max(map(len, entries))
    size = (width * columns, height * rows)
    return plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")


def _clean(figure: Figure, axes: Any) -> Figure:
    """No frames, and names of contenders only where a row of panels begins."""
    for row in axes:
        for number, panel in enumerate(row):
            panel.spines[["top", "right"]].set_visible(False)
            panel.title.set_fontsize(10)
            names = [text.get_text() for text in panel.get_yticklabels()]
            if number and names == [text.get_text() for text in row[0].get_yticklabels()]:
                panel.set_yticklabels([])
    return figure
