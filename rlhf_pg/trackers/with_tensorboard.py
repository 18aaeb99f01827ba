"""TensorBoard: event files in the run's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_pg.trackers.tracker import CONFIG, RunFacts


class TensorBoard:
    """Scalars, the recipe and the completions as text. Steps after a checkpoint that is resumed from are hidden."""

    trl_prefix = "train/"

    def __init__(self, run: RunFacts, id: str | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.id = id or "tensorboard"  # the folder says which run it is
        folder = run.folder / "tensorboard"
        self.place = f"watch: tensorboard --logdir {folder}"
        self._writer = SummaryWriter(str(folder), purge_step=run.from_step + 1 if run.resumed else None)
        self._writer.add_text(CONFIG, _table(("key", "value"), list(run.config.items())), run.from_step)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        self._writer.add_text("completions", _table(columns, rows), step)

    def finish(self, failed: bool) -> None:
        self._writer.close()


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a Markdown table whose cells show text as it is."""
    lines = [columns, ["---"] * len(columns), *([_cell(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    if not isinstance(value, str):
        return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
    escaped = value.replace("&", "&amp;").replace("<", "&lt;").replace("\\", "&#92;").replace("|", "&#124;")
    for mark in "*_`[]#~$":
        escaped = escaped.replace(mark, f"&#{ord(mark)};") if mark != "#" else escaped
    return escaped.replace("\r", "").replace("\n", "<br>")
