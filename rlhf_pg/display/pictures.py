"""Pictures in files, by matplotlib in one style. A page has charts that can be pointed at: report/charts.py."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GREY = "#2a6fbb", "#d9822b", "#4f9a5b", "#c3c9d1"


def panels(
    rows: int, columns: int, width: float, height: float, grid: Literal["", "x", "both"] = "", **shared: Any
) -> tuple[Figure, Any]:
    """Return an empty figure of `width` x `height` inches and its panels [rows, columns], without frames."""
    from matplotlib.figure import Figure  # heavy, and most commands draw nothing

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **shared)
    for panel in axes.flat:
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_axisbelow(True)
        if grid:
            panel.grid(axis=grid, alpha=0.25)
    return figure, axes


def png(figure: Figure) -> bytes:
    """Return the figure as a PNG file."""
    data = BytesIO()
    figure.savefig(data, format="png", dpi=120)
    return data.getvalue()
