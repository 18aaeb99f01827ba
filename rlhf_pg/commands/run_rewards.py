"""The commands `rlhf-pg rewards check` and `rlhf-pg rewards score`: try a reward function on data before training."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from rlhf_pg.commands import run_rewards_output
from rlhf_pg.config import reading
from rlhf_pg.data.columns import names, value_at
from rlhf_pg.data.conversation import decoded, is_conversation, parse, plain, reply_text
from rlhf_pg.data.files import files_of, is_saved
from rlhf_pg.data.local import kind_of, opened
from rlhf_pg.data.rows import Rows
from rlhf_pg.data.source import load_rows
from rlhf_pg.errors import RecipeError
from rlhf_pg.grading import numbers
from rlhf_pg.names import nearest
from rlhf_pg.rewards import plugin
from rlhf_pg.rewards.arguments import check_rows, replaced_columns
from rlhf_pg.rewards.score import Scorer
from rlhf_pg.types import Sample, Score

KINDS = (".parquet", ".json", ".csv", ".tsv")  # of files that are read as a run reads them
CHUNK = 512  # rows scored at once


def check(
    fn: str,
    data: Path | None = None,
    *,
    prompt: str | None = None,
    answer: str | None = None,
    completion: str | None = None,
    args: Sequence[str] = (),
    rows: int = 8,
    timeout_s: float = 10.0,
    memory_mb: int = 2048,
) -> int:
    """Show what a function is called with, and how it scores the first rows of the data.

    `completion` is the column to score; without it the gold answer is scored, as it is and boxed, which a correctness
    reward should accept. `prompt`, `answer`: columns, by default those of that name; `args`: "name=value", or a YAML
    mapping. Returns 0, or 1 after printing what is wrong.
    """
    console = Console(highlight=False)
    try:
        _at_least_one({"--rows": rows, "--memory-mb": memory_mb})
        reward = _resolve(fn, args, timeout_s, memory_mb)
        run_rewards_output.describe(console, reward)
        if data is None:
            return 0
        first_rows = read_rows(data, rows)
        if completion is not None:
            require(first_rows, completion)
        if answer is not None:
            require(first_rows, answer)
        elif plugin.asks_for(reward, "answer"):
            require(first_rows, "answer", f", which {reward.name} asks for", "name the gold answers by --answer")
        elif completion is None:
            hint = "name them by --answer, or a text to score by --completion"
            require(first_rows, "answer", ", and gold answers are what is scored", hint)
        _require_prompt(reward, first_rows, prompt)
        _check_rows(reward, first_rows)
        numbered = [
            (n, row, t) for n, row in enumerate(first_rows, 1) for t in _texts_to_score(row, answer, completion)
        ]
        samples = [_sample(row, text, prompt, answer) for _, row, text in numbered]
        with Scorer([reward], workers=1) as scorer:
            scores = scorer.score(samples)
    except (ValueError, RuntimeError, OSError) as error:
        return _fail(error)
    for line in replaced_columns([reward], names(first_rows[0])):
        console.print(line, markup=False)
    console.print(run_rewards_output.table([n for n, _, _ in numbered], samples, scores))
    for (number, _, _), scored in zip(numbered, scores, strict=True):
        if scored.detail:
            console.print(f"row {number}: {scored.detail.partition(': ')[2]}", markup=False, soft_wrap=True)
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
    prompt: str | None = None,
    args: Sequence[str] = (),
    workers: int = 2,
    timeout_s: float = 10.0,
    memory_mb: int = 2048,
) -> int:
    """Score a column of a file: one line per row in `out`, same order, and print the mean and the outcomes.

    A line has `score`, `outcome`, `parts` and `detail`; `score` is null where the function failed or excluded the row.
    Returns 0, or 1 after printing what is wrong.
    """
    scores = []
    try:
        _at_least_one({"--workers": workers, "--memory-mb": memory_mb})
        reward = _resolve(fn, args, timeout_s, memory_mb)
        rows = read_rows(data)
        for column in (completion, answer):
            require(rows, column)
        _require_prompt(reward, rows, prompt)
        _check_rows(reward, rows)
        samples = [_sample(row, value_at(row, completion), prompt, answer) for row in rows]
        with Scorer([reward], workers=workers) as scorer, out.open("w", encoding="ascii") as sink:
            for scored in _with_progress(scorer, samples, batched=reward.batched):
                line = {"score": scored.reward, "outcome": scored.outcome, "parts": scored.parts}
                sink.write(json.dumps(line | {"detail": scored.detail}) + "\n")
                scores.append(scored)
    except (ValueError, RuntimeError, OSError) as error:
        return _fail(error)
    print(*replaced_columns([reward], names(rows[0])), *run_rewards_output.summary(reward, scores, out), sep="\n")
    return 0


def _resolve(fn: str, args: Sequence[str], timeout_s: float, memory_mb: int) -> plugin.Reward:
    if not timeout_s > 0:
        raise ValueError(f"--timeout-s must be above 0, got {timeout_s:g}")
    return plugin.resolve(fn, 1.0, timeout_s, memory_mb, "--{}", args=_arguments(args))


def _arguments(words: Sequence[str]) -> dict[str, Any]:
    """Return the arguments in "scale=2" and "{scale: 2}", whose values are YAML. Raises ValueError for other words."""
    arguments: dict[str, Any] = {}
    for word in words:
        try:
            if word.lstrip().startswith("{"):
                arguments |= reading.parse(word, "--args")
            elif "=" not in word:
                raise ValueError("there is no '='")
            else:
                reading.assign(arguments, word, lambda key: "free")
        except ValueError as error:
            why = "; ".join(error.problems) if isinstance(error, RecipeError) else str(error)
            raise ValueError(f"--args {word}: give name=value or '{{name: value}}' ({why})") from error
    return arguments


def _at_least_one(options: dict[str, int]) -> None:
    for option, value in options.items():
        if value < 1:
            raise ValueError(f"{option} must be at least 1, got {value}")


def _check_rows(reward: plugin.Reward, rows: Rows) -> None:
    check_rows([reward], [(_place(rows, index), row) for index, row in enumerate(rows)], tokens=False)


def _require_prompt(reward: plugin.Reward, rows: Rows, prompt: str | None) -> None:
    """Raise ValueError where a column for the problem is named, or needed, and not there."""
    if prompt is not None:
        require(rows, prompt)
    elif {"prompt", "prompts"} & {*reward.arguments}:
        require(rows, "prompt", f", which {reward.name} asks for", "name the problems by --prompt")


def read_rows(path: Path, limit: int | None = None) -> Rows:
    """Return the rows, the first `limit`, of the files that `data.*.path` could name; other endings are lines of JSON.

    Lines may hold what a model wrote and JSON forbids: lone surrogates, NaN. Raises ValueError for what cannot be read,
    naming file and line, and for files without rows.
    """
    as_lines = [(file, kind_of(file) not in KINDS and not is_saved(file)) for file in files_of(path)]
    rows = Rows.joined([_read_lines(file, limit) if lines else load_rows(path=file) for file, lines in as_lines])
    if not rows:
        raise ValueError(f"{path}: no rows")
    return rows.first(limit)


def _read_lines(path: Path, limit: int | None) -> Rows:
    rows, numbers = [], []
    with opened(path) as lines:
        for number, line in enumerate(lines, 1):
            if len(rows) == limit:
                break
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig", "surrogatepass"))
            except ValueError as error:
                raise ValueError(f"{path}:{number}: not JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}:{number}: a {type(row).__name__}, not an object")
            rows.append(row)
            numbers.append(number)
    return Rows(rows, str(path), numbers)


def _place(rows: Rows, index: int) -> str:
    """Return "a.jsonl: row 3", counted from 1 in the row's own file."""
    for part in rows.parts:
        if index < len(part):
            return _place(part, index)
        index -= len(part)
    return f"{rows.source}: row {index + 1}"


def require(rows: Rows, column: str, why: str = "", hint: str = "") -> None:
    """Raise ValueError where a row lacks a value in a column. `why` it is needed and `hint`, what to do, are shown."""
    for index, row in enumerate(rows):
        try:
            value = value_at(row, column)
        except KeyError:
            there = sorted(names(row))
            do = f"; {hint}" if hint else nearest(column, there)
            listed = ", ".join(there)
            raise ValueError(f"{_place(rows, index)} has no column {column!r}{why}; it has {listed}{do}") from None
        if value is None:
            raise ValueError(f"{_place(rows, index)} has null in column {column!r}")


def _sample(row: dict[str, Any], text: Any, prompt: str | None, answer: str | None) -> Sample:
    gold = _gold(_value(row, answer or "answer", None))
    columns = row if gold is None else row | {"answer": gold}
    finish = "length" if row.get("finish") == "length" else "stop"
    return Sample(_question(_value(row, prompt or "prompt", "")), str(reply_text(text)), finish, columns)


def _question(value: Any) -> str:
    """Return a prompt as text: of messages, the user's last turn."""
    value = decoded(plain(value))
    if not is_conversation(value):
        return str(value)
    return next(turn["content"] for turn in reversed(parse(value, reply=True)) if turn["role"] == "user")


def _value(row: dict[str, Any], column: str, default: Any) -> Any:
    """Return the value of a column, which may be nested, or the default where there is none."""
    try:
        return value_at(row, column)
    except KeyError:
        return default


def _gold(value: Any) -> Any:
    """Return a gold answer as a run gives it to a reward: a number as text."""
    is_number = isinstance(value, int | float | Decimal) and not isinstance(value, bool)
    return numbers.as_text(value) if is_number else value


def _texts_to_score(row: dict[str, Any], answer: str | None, completion: str | None) -> list[str]:
    if completion is not None:
        return [str(reply_text(value_at(row, completion)))]
    gold = str(_gold(value_at(row, answer or "answer")))
    return [gold, rf"\boxed{{{gold}}}"] if "\n" not in gold else [gold]


def _with_progress(scorer: Scorer, samples: list[Sample], batched: bool) -> Iterator[Score]:
    columns = TextColumn("scoring"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    size = len(samples) if batched else CHUNK
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("scoring", total=len(samples))
        for start in range(0, len(samples), size):
            for scored in scorer.score(samples[start : start + size]):
                yield scored
                progress.advance(task)


def _fail(error: Exception) -> int:
    """Print an error and return the exit code."""
    Console(stderr=True, highlight=False).print(
        f"[red]{run_rewards_output.printable(str(error))}[/red]", soft_wrap=True
    )
    return 1
