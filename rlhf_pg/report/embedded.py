"""What a run's page holds for its script, as one JSON object: metrics, all logged samples, held-out problems."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from rlhf_pg.display.figures import number
from rlhf_pg.report.problems import Problems
from rlhf_pg.report.run_record import RunRecord

CHARACTERS = 40_000_000  # of samples on a page: more than that takes seconds to open
STRIP = "The strip under a completion is darker where a token was less likely."
COLUMNS = ("step", "prompt", "completion", "reward", "advantage", "outcome", "finish", "detail", "parts", "tokens")


def embedded(run: RunRecord, problems: Problems) -> dict[str, Any]:
    """Return what the page's script reads; numbers are finite, None stands for a missing one."""
    return {
        "name": re.sub(r"[^\w.-]+", "_", run.name),
        "metrics": metrics(run),
        "rollouts": samples(run),
        "problems": problems.as_json(),
    }


def metrics(run: RunRecord) -> dict[str, list[Any]]:
    """Return metric -> its value in every step, with six digits; the steps under "step"."""
    names = dict.fromkeys(["step", *(name for row in run.steps for name in row)])
    return {name: [_value(row.get(name)) for row in run.steps] for name in names}


def samples(run: RunRecord) -> dict[str, Any]:
    """Return the logged samples as rows of `columns`; `prompt` counts in `prompts`.

    Where all would be more than CHARACTERS, those of every 2nd, 4th, ... step are returned, and the note says so.
    """
    every, size = 1, 0
    of_files: dict[int, list[dict[str, Any]]] = {}
    sizes: dict[int, int] = {}
    for i, path in enumerate(run.rollouts):
        if i % every:
            continue
        of_files[i] = [_sample(row, path) for row in run.rollout_rows(path)]
        sizes[i] = sum(len(row["completion"]) + len(row["prompt"][1]) + len(row["surprise"]) for row in of_files[i])
        size += sizes[i]
        while size > CHARACTERS and len(of_files) > 1:
            every *= 2
            of_files = {i: rows for i, rows in of_files.items() if i % every == 0}
            size = sum(sizes[i] for i in of_files)
    numbers: dict[tuple[str, str, str | None], int] = {}
    rows = []
    for row in (row for rows in of_files.values() for row in rows):
        row["prompt"] = numbers.setdefault(row["prompt"], len(numbers))
        rows.append([row[column] for column in (*COLUMNS, "surprise")])
    prompts = [{"prompt_id": id, "prompt": prompt, "answer": answer} for id, prompt, answer in numbers]
    thinned = f"Of every {every}th logged step: all of them would make this page too large. " if every > 1 else ""
    note = f"{thinned}log.samples says how many of a step are logged. {STRIP}"
    return {"columns": [*COLUMNS, "surprise"], "prompts": prompts, "rows": rows, "note": note}


def _sample(row: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return one line of a rollouts file with the types that the page expects."""
    step = number(row, "step")
    if step is None or not math.isfinite(step):
        of_file = path.stem.removeprefix("step_")
        step = int(of_file) if of_file.isdecimal() else None
    tokens, parts, answer = row.get("tokens"), row.get("parts"), row.get("answer")
    return {
        "step": step if step is None else int(step),
        "prompt": (str(row.get("prompt_id", "")), str(row.get("prompt", "")), None if answer is None else str(answer)),
        "completion": str(row.get("completion", "")),
        "reward": _finite(row, "reward"),
        "advantage": _finite(row, "advantage"),
        "outcome": str(row.get("outcome") or ""),
        "finish": str(row.get("finish") or ""),
        "detail": str(row.get("detail") or ""),
        "parts": {str(name): _finite(parts, name) for name in parts} if isinstance(parts, dict) else {},
        "tokens": len(tokens) if isinstance(tokens, list) else None,
        "surprise": _surprise(row.get("logp")),
    }


def _surprise(logp: Any) -> str:
    """Return a digit per token, 0 for a probability of 1 to 9 for one near 0."""
    if not isinstance(logp, list):
        return ""
    values = [p if isinstance(p, int | float) and not math.isnan(p) else 0.0 for p in logp]
    return "".join(str(min(int(10 * (1 - math.exp(min(p, 0.0)))), 9)) for p in values)


def _finite(values: dict[str, Any], key: str) -> float | None:
    value = number(values, key)
    return value if value is not None and math.isfinite(value) else None


def _value(value: Any) -> Any:
    """Return a metric as JSON can have it."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value if value is None or isinstance(value, int | str) else str(value)
