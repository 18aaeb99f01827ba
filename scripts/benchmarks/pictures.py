"""One picture per mode: out/step.png, out/rollout.png, ..."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from benchmarks.modes import PARTS
from rlhf_pg.display.pictures import BLUE, GREY, panels, png

Record = dict[str, Any]
DOT = "#1d2733"
LABELS = {
    "G": "samples per prompt, G",
    "P": "prompt tokens, P",
    "C": "completion tokens, C",
    "parameters": "parameters",
}
LINES = {
    "seconds": ("step", BLUE, "o-"),
    "rollout_s": ("rollout", "#e0a458", "s--"),
    "update_s": ("update", "#7a8b5c", "^--"),
}
COLORS = (BLUE, "#8fb8de", "#e0a458", "#c4683c", "#7a8b5c", "#d0d4d9")


def step(records: Sequence[Record]) -> Figure:
    """Draw seconds above, peak memory below, a column per shape."""
    figure, axes = _grid(2, len(records), [r["contenders"] for r in records])
    for (above, below), record in zip(axes.T, records, strict=True):
        entries = record["contenders"]
        _bars(above, entries, [e["seconds"]["median"] for e in entries], "{:.2f}", _each(entries, "seconds"))
        _bars(below, entries, [e["peak_above_imports_mb"] for e in entries], "{:,.0f}")
        above.set(title=record["shape"], xlabel="seconds per step")
        below.set(xlabel="peak memory above imports, MiB")
    return _named_once(figure, axes)


def rollout(records: Sequence[Record]) -> Figure:
    figure, axes = _grid(1, len(records), [r["contenders"] for r in records])
    for panel, record in zip(axes[0], records, strict=True):
        entries = record["contenders"]
        each = [[r["tokens"] / r["seconds"] for r in e["rounds"]] for e in entries]
        _bars(panel, entries, [e["tokens_per_s"]["median"] for e in entries], "{:,.0f}", each)
        panel.set(title=record["shape"], xlabel="tokens per second")
    return _named_once(figure, axes)


def update(records: Sequence[Record]) -> Figure:
    """Draw three rates a shape: the update's, that of its layers' products, a large square's."""
    figure, axes = _grid(1, len(records), [[1, 2, 3]] * len(records))
    names = ("update", "products of its layers", "large square product")
    for panel, record in zip(axes[0], records, strict=True):
        rates = [record["gflops"], record["layers_gflops"], record["square_gflops"]]
        _bars(panel, [{"name": name} for name in names], rates, "{:,.0f}")
        panel.set(title=f"{record['shape']}: {record['share_of_layers']:.0%} of its layers'", xlabel="GFLOP/s")
    return _named_once(figure, axes)


def overhead(records: Sequence[Record]) -> Figure:
    """Draw a bar per shape, cut into the parts of a step."""
    figure, ((panel,),) = panels(1, 1, 8, 1.3 + 0.5 * len(records))
    for place, record in enumerate(records[::-1]):
        total, left = record["seconds"]["seconds"]["median"], 0.0
        for color, part in zip(COLORS, PARTS, strict=False):
            width = record["seconds"][part]["median"] / total
            panel.barh(place, width, left=left, color=color, label=None if place else part.removesuffix("_s"))
            left += width
        panel.barh(place, max(0.0, 1 - left), left=left, color=COLORS[-1], label=None if place else "outside")
        panel.text(1.01, place, f"{record['share_outside']['median']:.1%} outside", va="center", fontsize=9)
    panel.set_yticks(range(len(records)), [record["shape"] for record in records[::-1]])
    panel.set(xlim=(0, 1), xlabel="share of a step")
    figure.legend(loc="outside upper center", ncols=len(PARTS) + 1, frameon=False, fontsize=9)
    return figure


def memory(record: Record) -> Figure:
    """Draw the scoring pass; the peaks of complete steps are in step.png."""
    entries, shape = record["scoring"]["contenders"], record["scoring"]["of"]
    figure, axes = _grid(1, 1, [entries], width=7)
    _bars(axes[0][0], entries, [e["peak_above_loaded_mb"] for e in entries], "{:,.0f}")
    rows = f"{shape['prompts'] * shape['samples']} rows of {shape['completion']} tokens"
    title = f"scoring {rows}, V {shape['model']['vocabulary']:,}"
    axes[0][0].set(title=title, xlabel="peak memory above the loaded model, MiB")
    return figure


def scaling(records: Sequence[Record]) -> Figure:
    """Draw a panel per number that grows, all on one scale of seconds."""
    figure, axes = panels(1, len(records), 3.2 * len(records), 3, grid="both", sharey=True)
    for panel, record in zip(axes[0], records, strict=True):
        at = [point["at"] for point in record["points"]]
        for key, (label, color, style) in LINES.items():
            panel.plot(at, [p[key]["median"] for p in record["points"]], style, color=color, label=label, markersize=4)
        panel.set(xscale="log", yscale="log", xlabel=LABELS[record["over"]])
        large = record["over"] == "parameters"
        panel.set_xticks(at, [f"{value / 1e6:.0f}M" if large else str(value) for value in at])
        panel.xaxis.set_minor_locator(NullLocator())
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.yaxis.set_minor_formatter(NullFormatter())
    axes[0][0].set_ylabel("seconds")
    axes[0][0].legend(frameon=False, fontsize=8)
    return figure


def ladder(records: Sequence[Record]) -> Figure:
    figure, axes = _grid(1, len(records), [r["seconds"] for r in records], width=5.2)
    for panel, record in zip(axes[0], records, strict=True):
        entries = [{"name": name, "rounds": record["rounds"][name]} for name in record["seconds"]]
        medians = [s["median"] for s in record["seconds"].values()]
        _bars(panel, entries, medians, "{:.2f}", _each(entries, "seconds"), first=GREY)
        panel.set(title=record["shape"], xlabel="seconds per update")
    return _named_once(figure, axes)


def learn(record: Record) -> Figure:
    """Draw held-out greedy accuracy over seconds and over samples, a line per seed."""
    figure, axes = panels(1, 2, 8.5, 3.2, grid="both", sharey=True)
    for panel, key in zip(axes[0], ("seconds", "samples"), strict=True):
        for contender, color in zip(record["contenders"], (BLUE, COLORS[2]), strict=False):
            for number, run in enumerate(contender["runs"]):
                xs, ys = [p[key] for p in run["curve"]], [p["greedy"] for p in run["curve"]]
                panel.plot(xs, ys, "o-", color=color, markersize=3, label=None if number else contender["name"])
        panel.axhline(record["goal"], color=DOT, linewidth=0.8, linestyle=":")
        panel.set(xlabel=key, ylim=(0, 1))
    axes[0][0].set_ylabel("held-out greedy")
    axes[0][0].legend(frameon=False, fontsize=8)
    return figure


PICTURES: dict[str, Callable[[Any], Figure]] = {
    "step": step,
    "rollout": rollout,
    "update": update,
    "overhead": overhead,
    "memory": memory,
    "scaling": scaling,
    "ladder": ladder,
    "learn": learn,
}


def draw(mode: str, record: Any, folder: Path) -> Path | None:
    """Draw what a mode measured into the folder; return None when it measured nothing."""
    if not record:
        return None
    path = folder / f"{mode}.png"
    path.write_bytes(png(PICTURES[mode](record)))
    return path


def _bars(
    panel: Axes,
    entries: Sequence[Record],
    values: Sequence[float],
    form: str,
    each: Sequence[Sequence[float]] = (),
    first: str = BLUE,
) -> None:
    """Draw a bar per contender from the top down, the first in its color, its value beside it, a dot per round."""
    places = range(len(entries))[::-1]
    panel.barh(places, values, color=[first] + [GREY] * (len(entries) - 1), height=0.65)
    for place, dots in zip(places, each, strict=False):
        panel.plot(dots, [place] * len(dots), ".", color=DOT, markersize=3, alpha=0.7)
    longest = max([*values, *(x for dots in each for x in dots)])
    for place, value, dots in zip(places, values, each or [[]] * len(values), strict=True):
        panel.text(max([value, *dots]) + 0.02 * longest, place, form.format(value), va="center", fontsize=8)
    panel.xaxis.set_major_locator(MaxNLocator(5))
    panel.set_yticks(places, [e["name"] for e in entries])
    panel.set_xlim(0, 1.22 * longest)


def _each(entries: Sequence[Record], key: str) -> list[list[float]]:
    return [[r[key] for r in e["rounds"]] for e in entries]


def _grid(rows: int, columns: int, entries: Sequence[Any], width: float = 4.2) -> tuple[Figure, Any]:
    height = 0.9 + 0.32 * max(map(len, entries))
    return panels(rows, columns, width * columns, height * rows)


def _named_once(figure: Figure, axes: Any) -> Figure:
    """Leave the names of contenders only where a row of panels begins, if they are the same in all."""
    for row in axes:
        names = [text.get_text() for text in row[0].get_yticklabels()]
        for panel in row[1:]:
            if names == [text.get_text() for text in panel.get_yticklabels()]:
                panel.set_yticklabels([])
    return figure
