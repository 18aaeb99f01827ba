"""Which columns of a row are the prompt and the gold answer, also inside nested ones: `reward_model.ground_truth`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from rlhf_pg.data import conversation
from rlhf_pg.data.conversation import Turn
from rlhf_pg.data.rows import Rows
from rlhf_pg.tasks.base import Row, Task, as_given

Readers = tuple[Callable[[int], str | list[Turn]], Callable[[int], str | None]]
PROMPTS = ("prompt", "messages", "question", "problem")  # columns of rows without a task, where none is named
ANSWERS = ("answer",)


def readers(
    rows: Rows, task: Task | None, prompt_column: str | None, answer_column: str | None, *, needs_answer: bool = True
) -> Readers:
    """Return two functions: row index -> question, or conversation; row index -> gold answer.

    A conversation may end with the assistant's turn, but not in a column called prompt. Where no answer is needed,
    none is read without a task or a column that is named. They raise ValueError naming line and column for what is
    missing, empty or of the wrong kind.
    """
    prompts = (prompt_column,) if prompt_column else task.question if task else PROMPTS
    answers = (answer_column,) if answer_column else tuple(task.answer) if task else ANSWERS if needs_answer else ()
    if task is None:
        unnamed = {"prompt": not prompt_column and prompts, "answer": not answer_column and answers}
        missing = [role for role, usual in unnamed.items() if usual and not rows[0].keys() & set(usual)]
        if missing:
            raise ValueError(
                f"{rows.source}: without a task, name the {' and '.join(missing)} column{'s' * (len(missing) > 1)} "
                f"(data.*.{', data.*.'.join(missing)}); the columns are {_listed(rows[0])}"
            )
        prompts = tuple(column for column in prompts if prompt_column or column in rows[0])[:1]  # of all rows

    def question(index: int) -> str | list[Turn]:
        column, value = _cell(rows, index, prompts, "prompt")
        value = conversation.decoded(value)
        if not conversation.is_conversation(value):
            return _text(rows, index, column, value, "prompt")
        try:
            return conversation.parse(value, reply=column != "prompt")
        except ValueError as error:
            raise ValueError(f"{rows.where(index)}: prompt column {column!r}: {error}") from error

    def gold(index: int) -> str | None:
        if not answers:
            return None
        column, value = _cell(rows, index, answers, "answer")
        text = _text(rows, index, column, value, "answer")
        extract = task.answer.get(column, as_given) if task else as_given
        try:
            answer = extract(text)
        except ValueError as error:
            raise ValueError(f"{rows.where(index)}: column {column!r}: {error}") from error
        if not answer:
            raise ValueError(f"{rows.where(index)}: column {column!r} has no gold answer in it: {text[-60:]!r}")
        return answer

    return question, gold


def value_at(row: Row, column: str) -> Any:
    """Return the value of a column, which may be nested: "a.b" is the column of that name, else b of the struct in a.

    A number is a place in a list: "answers.0". Raises KeyError where there is none.
    """
    if column in row:
        return row[column]
    for split in [i for i, letter in enumerate(column) if letter == "."]:
        head, rest = column[:split], column[split + 1 :]
        inner = conversation.plain(row.get(head))
        if isinstance(inner, list | tuple):
            inner = {str(i): value for i, value in enumerate(inner)}
        if isinstance(inner, Mapping):
            try:
                return value_at(dict(inner), rest)
            except KeyError:
                continue
    raise KeyError(column)


def names(row: Row) -> list[str]:
    """Return the names by which the values of a row can be reached: of a struct, those of its fields."""
    return [
        f"{column}.{inner}" if inner else column
        for column, value in row.items()
        for inner in (names(value) if isinstance(value, dict) and value else [""])
    ]


def _cell(rows: Rows, index: int, candidates: Sequence[str], role: str) -> tuple[str, Any]:
    """Return name and value of the first candidate column the row has."""
    for column in candidates:
        try:
            return column, conversation.plain(value_at(rows[index], column))
        except KeyError:
            continue
    wanted = " or ".join(map(repr, candidates))
    raise ValueError(f"{rows.where(index)}: no {role} column {wanted}; the columns are {_listed(rows[index])}")


def _text(rows: Rows, index: int, column: str, value: Any, role: str) -> str:
    """Return a cell as text; numbers with all their digits, for 5e-05 reads as 5 elsewhere."""
    if value is None:
        raise ValueError(
            f"{rows.where(index)}: {role} column {column!r} is None (null, or an empty cell): fill it in, or leave "
            "the row out"
        )
    if isinstance(value, float | Decimal) and math.isfinite(value):
        value = f"{Decimal(str(value)):f}"
    if isinstance(value, bool) or not isinstance(value, str | int):
        inside = names({column: value}) if isinstance(value, dict) and value else []
        hint = f"; in it are {', '.join(map(repr, inside))}" if inside else ""
        shown = repr(value) if len(repr(value)) <= 100 else repr(value)[:97] + "..."
        needed = "text, a number or a list of messages" if role == "prompt" else "text or a number"
        raise ValueError(f"{rows.where(index)}: {role} column {column!r} is {shown}; {needed} is needed{hint}")
    if not str(value).strip():
        raise ValueError(f"{rows.where(index)}: {role} column {column!r} is empty")
    return str(value)


def _listed(row: Row) -> str:
    return ", ".join(map(repr, names(row))) or "none"
