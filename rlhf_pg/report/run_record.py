"""Read a run's folder as it is: finished, still going, or killed in the middle of a line."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from rlhf_pg.display.figures import number
from rlhf_pg.report.axes import Point

EXPECTED = {
    "metrics.jsonl": "no curves",
    "summary.json": "the run has not finished, or was stopped",
    "config.yaml": "no configuration",
    "rollouts": "no samples",
}


@dataclass(frozen=True)
class RunRecord:
    """What a run's folder holds. `steps` are ascending and unique: of a step logged twice, the last line counts."""

    path: Path
    name: str
    steps: list[dict[str, Any]] = field(default_factory=list)  # lines of metrics.jsonl
    config: dict[str, Any] = field(default_factory=dict)
    config_text: str = ""
    summary: dict[str, Any] = field(default_factory=dict)
    launches: list[dict[str, Any]] = field(default_factory=list)  # what ran, of run.json
    rollouts: list[Path] = field(default_factory=list)  # ascending by step
    evaluations: list[dict[str, Any]] = field(default_factory=list)  # lines of eval.jsonl
    missing: list[str] = field(default_factory=list)
    unreadable: dict[str, int] = field(default_factory=dict)  # file -> lines (or 1) that could not be read
    torn: bool = False  # the last line of metrics.jsonl is incomplete

    @property
    def last_step(self) -> int:
        """The last step that was logged, 0 before the first."""
        return self.steps[-1]["step"] if self.steps else 0

    def setting(self, key: str, default: Any = None) -> Any:
        """Return the value of a recipe key such as "algorithm.name"; the default when any part of it is missing."""
        value: Any = self.config
        for part in key.split("."):
            if not isinstance(value, dict) or part not in value:
                return default
            value = value[part]
        return value

    def evaluation(self, when: str) -> dict[str, Any]:
        """Return the held-out figures "before" or "after" training from summary.json, {} without them.

        Of a run that has not finished, "before" comes from eval.jsonl, without intervals.
        """
        figures = self.summary.get(when)
        if when == "before" and not self.summary:
            return self._first_evaluation()
        return figures if isinstance(figures, dict) else {}

    def _first_evaluation(self) -> dict[str, float]:
        rows = [row for row in self.evaluations if row.get("step") == 0]
        counts = [(number(row, "correct"), number(row, "n")) for row in rows]
        shares = {
            "pass@1": [correct / n for correct, n in counts if correct is not None and n],
            "greedy": [float(row["greedy"]) for row in rows if isinstance(row.get("greedy"), bool)],
        }
        return {name: statistics.fmean(values) for name, values in shares.items() if values}

    def series(self, key: str, scale: float = 1.0) -> list[Point]:
        """Return (step, value) of each step that has the metric; NaN and infinite values are None, a gap."""
        points = [(float(row["step"]), number(row, key)) for row in self.steps if key in row]
        return [(x, y * scale if y is not None and math.isfinite(y) else None) for x, y in points]

    def values(self, key: str) -> list[float]:
        """Return the finite values of a metric, step by step."""
        return [y for _, y in self.series(key) if y is not None]

    def has_metric(self, prefix: str) -> bool:
        """Return whether any step logged a metric whose name begins so."""
        return any(key.startswith(prefix) for row in self.steps for key in row)

    def rollout_rows(self, path: Path) -> Iterator[dict[str, Any]]:
        """Yield the rows of one rollouts file; lines that cannot be read are counted in `unreadable`."""
        bad_lines = 0
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                row = _json_object(line)
                bad_lines += row is None and bool(line.strip())
                if row is not None:
                    yield row
        if bad_lines:
            self.unreadable[f"rollouts/{path.name}"] = bad_lines


def read(path: Path, name: str | None = None) -> RunRecord:
    """Read the run in `path`. Raises ValueError when it is no directory or holds nothing that a run writes."""
    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"no run directory {path}: give the folder that holds metrics.jsonl")
    missing = [file for file in EXPECTED if not (path / file).exists()]
    if len(missing) == len(EXPECTED):
        raise ValueError(f"{path} holds no run: expected one of {', '.join(EXPECTED)}")
    unreadable: dict[str, int] = {}
    launches = _mapping(path / "run.json", _text(path / "run.json"), unreadable).get("launches")
    steps, torn = _read_metrics(path / "metrics.jsonl", unreadable)
    evaluations = [(line, _json_object(line)) for line in _text(path / "eval.jsonl").split("\n") if line.strip()]
    if bad_lines := sum(row is None for _, row in evaluations):
        unreadable["eval.jsonl"] = bad_lines
    config_text = _text(path / "config.yaml")
    return RunRecord(
        path=path,
        name=name or path.resolve().name,
        steps=steps,
        config=_mapping(path / "config.yaml", config_text, unreadable),
        config_text=config_text,
        summary=_mapping(path / "summary.json", _text(path / "summary.json"), unreadable),
        launches=[launch for launch in launches if isinstance(launch, dict)] if isinstance(launches, list) else [],
        rollouts=sorted((path / "rollouts").glob("step_*.jsonl")),
        evaluations=[row for _, row in evaluations if row is not None],
        missing=missing,
        unreadable=unreadable,
        torn=torn,
    )


def _read_metrics(path: Path, unreadable: dict[str, int]) -> tuple[list[dict[str, Any]], bool]:
    """Return the steps, and whether the last line is incomplete."""
    text = _text(path)
    steps: dict[int, dict[str, Any]] = {}
    bad_lines, last_is_bad = 0, False
    for line in text.removesuffix("\n").split("\n") if text else []:
        row = _json_object(line) or {}
        step = number(row, "step")
        last_is_bad = step is None or not math.isfinite(step)
        if step is not None and math.isfinite(step):
            steps[int(step)] = {**row, "step": int(step)}
        else:
            bad_lines += bool(line.strip())
    if bad_lines:
        unreadable[path.name] = bad_lines
    return [steps[step] for step in sorted(steps)], last_is_bad and not text.endswith("\n")


def _json_object(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _mapping(path: Path, text: str, unreadable: dict[str, int]) -> dict[str, Any]:
    try:
        value = YAML(typ="safe", pure=True).load(text) if path.suffix == ".yaml" else json.loads(text or "{}")
    except (YAMLError, ValueError, RecursionError):
        value = text
    if isinstance(value, dict):
        return value
    if text.strip():
        unreadable[path.name] = 1
    return {}
