"""A run's folder as an object: what `train` returns, or what ran before."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from rlhf_pg.display.figures import eval_names
from rlhf_pg.report import run_record


class Run:
    """A run's folder, of one that has finished, is going on, or was stopped."""

    def __init__(self, dir: str | Path) -> None:
        """Open the folder. Raises ValueError if no run has written there."""
        self.dir = Path(dir)
        run_record.read(self.dir)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Return a dict per step, as in metrics.jsonl: `pandas.DataFrame(run.metrics)` is a table."""
        return run_record.read(self.dir).steps

    @property
    def before(self) -> dict[str, float]:
        """Return the held-out figures before step 1: {"pass@1": 0.1, "pass@1_low": ..., "greedy": ...}, or {}."""
        return run_record.read(self.dir).evaluation("before")

    @property
    def after(self) -> dict[str, float]:
        """Return the held-out figures after the last step, or {}."""
        return run_record.read(self.dir).evaluation("after")

    @property
    def model(self) -> Path:
        """Return the folder of the trained model, for transformers, vLLM and `pg.train(model=...)`."""
        return self.dir / "model"

    def report(self, out: str | Path | None = None) -> Path:
        """Write the page about this run, by default report.html in its folder, and return its path."""
        from rlhf_pg.report import write_report

        return write_report.write([self.dir], Path(out) if out else None)

    def __repr__(self) -> str:
        steps = run_record.read(self.dir).last_step
        return f"Run({str(self.dir)!r}: step {steps}{''.join(f', {line}' for line in self._changes())})"

    def _repr_html_(self) -> str:
        lines = [f"<b>{html.escape(str(self.dir))}</b>: step {run_record.read(self.dir).last_step}"]
        return "<br>".join([*lines, *map(html.escape, self._changes())])

    def _changes(self) -> list[str]:
        before, after = self.before, self.after
        names = [name for name in eval_names(after) if name in before]
        return [f"{name} {before[name]:.2f} -> {after[name]:.2f}" for name in names]
