"""`rlhf-pg rewards check` and `rlhf-pg rewards score`: try a reward function on data before anything trains on it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from rlhf_pg.rewards import plugin
from rlhf_pg.rewards.score import Scorer
from rlhf_pg.types import Sample, Score

CHUNK = 512  # rows scored at once


def check(
    fn: str,
    data: Path | None = None,
    *,
    prompt: str = "prompt",
    answer: str = "answer",
    completion: str | None = None,
    rows: int = 8,
    timeout_s: float = 10.0,
) -> int:
    """Resolve a function, show what it will be called with, and score the first rows of the data.

    `completion` is the column to score; without it the gold answer itself stands in for one, as it is and boxed, which
    a correctness reward should accept. Returns 0, or 1 after saying what is wrong.
    """
    console = Console(highlight=False)
    try:
        reward = plugin.resolve(fn, timeout_s=timeout_s)
        _describe(console, reward)
        if data is None:
            return 0
        found = [row for _, row in zip(range(rows), read_rows(data), strict=False)]
        for column in [c for c in (completion, answer if "answer" in reward.arguments else None) if c]:
            require(found, column, data)
        plugin.check(reward, set(found[0]) | {"answer"}, tokens=False)
        trials = [t for row in found for t in _trials(row, answer, completion)]
        with Scorer([reward], workers=1) as scorer:
            scores = scorer.score([_sample(row, text, prompt, answer) for text, row in trials])
    except (ValueError, RuntimeError, OSError) as error:
        Console(stderr=True, highlight=False).print(f"[red]{_safe(str(error))}[/red]", soft_wrap=True)
        return 1
    console.print(_table([text for text, _ in trials], scores))
    failed = sum(s.reward is None for s in scores)
    console.print(f"{len(scores) - failed} of {len(scores)} scored" + (f", {failed} failed" if failed else ""))
    return 1 if failed else 0


def score(
    fn: str,
    data: Path,
    completion: str,
    answer: str,
    out: Path,
    *,
    prompt: str = "prompt",
    workers: int = 2,
    timeout_s: float = 10.0,
    memory_mb: int = 2048,
) -> int:
    """Score a column of a .jsonl file: one line per row in `out`, same order.

    A line has `score`, `outcome`, `parts` and `detail`; `score` is null where the function failed or excluded the row.
    Returns 0, or 1 after saying what is wrong.
    """
    try:
        reward = plugin.resolve(fn, timeout_s=timeout_s)
        rows = list(read_rows(data))
        for column in (completion, answer):
            require(rows, column, data)
        plugin.check(reward, set(rows[0]) | {"answer"}, tokens=False)
        samples = [_sample(row, row[completion], prompt, answer) for row in rows]
        with Scorer([reward], workers=workers, memory_mb=memory_mb) as scorer, out.open("w", encoding="ascii") as sink:
            for scored in _with_progress(scorer, samples, batched=reward.batched):
                line = {"score": scored.reward, "outcome": scored.outcome, "parts": scored.parts}
                sink.write(json.dumps(line | {"detail": scored.detail}) + "\n")
    except (ValueError, RuntimeError, OSError) as error:
        Console(stderr=True, highlight=False).print(f"[red]{_safe(str(error))}[/red]", soft_wrap=True)
        return 1
    return 0


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a .jsonl file. Raises ValueError naming file:line of a line that is no JSON object, or an empty file."""
    empty = True
    with path.open(encoding="utf-8", errors="surrogatepass") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}:{number}: not JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}:{number}: a {type(row).__name__}, not an object")
            empty = False
            yield row
    if empty:
        raise ValueError(f"{path}: no rows")


def require(rows: list[dict[str, Any]], column: str, path: Path) -> None:
    """Raise ValueError where a row lacks a value in a column."""
    for number, row in enumerate(rows, 1):
        if column not in row:
            there = ", ".join(sorted(row))
            raise ValueError(f"{path}: row {number} has no column {column!r}; it has {there}")
        if row[column] is None:
            raise ValueError(f"{path}: row {number} has null in column {column!r}")


def _sample(row: dict[str, Any], text: Any, prompt: str, answer: str) -> Sample:
    columns = row | ({"answer": row[answer]} if answer in row else {})
    finish = "length" if row.get("finish") == "length" else "stop"
    return Sample(str(row.get(prompt, "")), str(text), finish, columns)


def _trials(row: dict[str, Any], answer: str, completion: str | None) -> list[tuple[str, dict[str, Any]]]:
    """(completion, row) pairs to try."""
    if completion is not None:
        return [(str(row[completion]), row)]
    gold = str(row.get(answer, ""))
    return [(gold, row), (rf"\boxed{{{gold}}}", row)] if "\n" not in gold else [(gold, row)]


def _with_progress(scorer: Scorer, samples: list[Sample], batched: bool) -> Iterator[Score]:
    columns = TextColumn("scoring"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    size = len(samples) if batched else CHUNK
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("scoring", total=len(samples))
        for start in range(0, len(samples), size):
            for scored in scorer.score(samples[start : start + size]):
                yield scored
                progress.advance(task)


def _describe(console: Console, reward: plugin.Reward) -> None:
    kind = "once per batch" if reward.batched else "per sample"
    needs = ", ".join(reward.arguments) or "nothing"
    optional = f"; if there: {', '.join(reward.optional)}" if reward.optional else ""
    rest = "; and every other column" if reward.takes_rest else ""
    console.print(f"{reward.name}: {reward.module}:{reward.function}", markup=False)
    console.print(f"called {kind}{' (async)' if reward.is_async else ''}, limit {reward.timeout_s:g} s", markup=False)
    console.print(f"gets {needs}{optional}{rest}", markup=False)


def _table(texts: list[str], scores: list[Score]) -> Table:
    table = Table("completion", "reward", "outcome", "detail")
    for text, scored in zip(texts, scores, strict=True):
        reward = "" if scored.reward is None else f"{scored.reward:g}"
        shown = _safe(text if len(text) <= 60 else "..." + text[-57:])
        table.add_row(shown, reward, scored.outcome, _safe(scored.detail[:200]))
    return table


def _safe(text: str) -> str:
    """Printable and without markup, whatever a model wrote."""
    return text.encode("utf-8", "backslashreplace").decode().replace("[", r"\[")
