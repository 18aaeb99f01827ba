"""Read a run directory as it is: finished, still going, or killed in the middle of a line."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from rlhf_pg.display.figures import number

EXPECTED = {
    "metrics.jsonl": "no curves",
    "summary.json": "the run has not finished, or was stopped",
    "config.yaml": "no configuration",
    "rollouts": "no samples",
}
ROWS_PER_FILE = 256  # of a rollouts file
Point = tuple[float, float | None]


@dataclass(frozen=True)
class Run:
    """What a run directory held. `steps` are ascending and unique: of a step logged twice, the last line counts."""

    path: Path
    name: str
    steps: list[dict[str, Any]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    config_text: str = ""
    summary: dict[str, Any] = field(default_factory=dict)
    rollouts: list[Path] = field(default_factory=list)  # ascending by step
    missing: list[str] = field(default_factory=list)
    unreadable: dict[str, int] = field(default_factory=dict)  # file -> lines (or 1) that could not be read
    torn: bool = False  # the last line of metrics.jsonl is incomplete


def read(path: Path, name: str | None = None) -> Run:
    """The run in `path`. Raises ValueError when it is no directory or holds nothing that a run writes."""
    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"no run directory {path}: give the folder that holds metrics.jsonl")
    missing = [file for file in EXPECTED if not (path / file).exists()]
    if len(missing) == len(EXPECTED):
        raise ValueError(f"{path} holds no run: expected one of {', '.join(EXPECTED)}")
    unreadable: dict[str, int] = {}
    steps, torn = _read_metrics(path / "metrics.jsonl", unreadable)
    config_text = _text(path / "config.yaml")
    return Run(
        path=path,
        name=name or path.resolve().name,
        steps=steps,
        config=_mapping(path / "config.yaml", config_text, unreadable),
        config_text=config_text,
        summary=_mapping(path / "summary.json", _text(path / "summary.json"), unreadable),
        rollouts=sorted((path / "rollouts").glob("step_*.jsonl")),
        missing=missing,
        unreadable=unreadable,
        torn=torn,
    )


def dig(mapping: dict[str, Any], dotted: str, default: Any = None) -> Any:
    """`dig(config, "algorithm.name")`; the default when any part is missing."""
    value: Any = mapping
    for key in dotted.split("."):
        if not isinstance(value, dict) or key not in value:
            return default
        value = value[key]
    return value


def section(run: Run, name: str) -> dict[str, Any]:
    """`summary[name]` ("before" or "after") if it is a mapping, else {}."""
    value = run.summary.get(name)
    return value if isinstance(value, dict) else {}


def series(run: Run, key: str, scale: float = 1.0) -> list[Point]:
    """(step, value) per step that has the key; NaN and infinite values become None, a gap in the curve."""
    found = [(float(row["step"]), number(row, key)) for row in run.steps if key in row]
    return [(x, y * scale if y is not None and math.isfinite(y) else None) for x, y in found]


def cumulative(run: Run, per_step: list[float]) -> dict[float, float]:
    """step -> the sum up to and including it of `per_step` [steps]; a step without a line counts as the next one."""
    total, previous, out = 0.0, 0.0, {}
    for row, amount in zip(run.steps, per_step, strict=True):
        total += amount * max(row["step"] - previous, 0)
        previous = row["step"]
        out[float(row["step"])] = total
    return out


def samples_seen(run: Run) -> dict[float, float]:
    """step -> samples generated for training so far: as logged, else by outcomes, else as the recipe plans."""
    logged = {float(r["step"]): number(r, "samples/total") for r in run.steps}
    if logged and all(value is not None and math.isfinite(value) for value in logged.values()):
        return {step: value for step, value in logged.items() if value is not None}
    per_prompt, prompts = (dig(run.config, f"rollout.{k}", 0) for k in ("samples_per_prompt", "prompts_per_step"))
    planned = float(per_prompt * prompts) if isinstance(per_prompt, int) and isinstance(prompts, int) else 0.0
    counted = [sum(number(r, k) or 0 for k in r if k.startswith("outcome/")) for r in run.steps]
    return cumulative(run, [c if math.isfinite(c) and c > 0 else planned for c in counted])


def seconds_spent(run: Run) -> dict[float, float]:
    """step -> seconds of training steps so far (without evaluation between steps)."""
    taken = [number(row, "time/step_s") or 0.0 for row in run.steps]
    return cumulative(run, [t if math.isfinite(t) else 0.0 for t in taken])


def rows(path: Path, run: Run) -> Iterator[dict[str, Any]]:
    """The first rows of one rollouts file; unreadable lines are counted in `run.unreadable`."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in islice(lines, ROWS_PER_FILE):
            row = _object(line)
            if row is not None:
                yield row
            elif line.strip():
                run.unreadable[f"rollouts/{path.name}"] = run.unreadable.get(f"rollouts/{path.name}", 0) + 1


def _read_metrics(path: Path, unreadable: dict[str, int]) -> tuple[list[dict[str, Any]], bool]:
    text = _text(path)
    steps: dict[int, dict[str, Any]] = {}
    lines = text.removesuffix("\n").split("\n") if text else []
    bad = 0
    last_is_bad = False
    for line in lines:
        row = _object(line)
        step = number(row, "step") if row is not None else None
        last_is_bad = step is None or not math.isfinite(step)
        if row is not None and step is not None and math.isfinite(step):
            steps[int(step)] = {**row, "step": int(step)}
        else:
            bad += bool(line.strip())
    if bad:
        unreadable[path.name] = bad
    return [steps[key] for key in sorted(steps)], last_is_bad and bool(lines) and not text.endswith("\n")


def _object(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _mapping(path: Path, text: str, unreadable: dict[str, int]) -> dict[str, Any]:
    try:
        value = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text or "{}")
    except (yaml.YAMLError, ValueError, RecursionError):
        value = text
    if isinstance(value, dict):
        return value
    if text.strip():
        unreadable[path.name] = 1
    return {}
