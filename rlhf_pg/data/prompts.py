"""From data rows to prompts, and from prompts to steps: `load_rows` -> `to_prompts` -> `PromptSampler`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf_pg.data.source import Rows, load_rows
from rlhf_pg.data.templates import choose
from rlhf_pg.tasks.base import BOXED_INSTRUCTION, Row, Task, as_given, permutation
from rlhf_pg.tasks.base import resolve as resolve_task
from rlhf_pg.types import Prompt

__all__ = ["PromptSampler", "Prompts", "Rows", "load_rows", "to_prompts"]


@dataclass(frozen=True)
class Prompts:
    """The prompts that fit, and what a person should know about them."""

    prompts: list[Prompt]
    dropped: int  # rows whose prompt was too long
    template: str  # the one in use, never "auto"


def to_prompts(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    *,
    split_name: str,
    prompt_column: str | None = None,
    answer_column: str | None = None,
    template: str | None = None,
    max_prompt_tokens: int,
    context_length: int,
    max_new_tokens: int,
    task: str | Task | None = None,
) -> Prompts:
    """Tokenize rows to prompts with id "split_name/row index", whose columns are the row with `question`, `answer`
    (gold, a str) and, where the task knows one, `solution`.

    Prompts longer than `max_prompt_tokens`, or than the context leaves after `max_new_tokens`, are dropped and counted.
    Raises ValueError for a missing column, an empty or missing question or answer (with its line), an answer the task
    finds no gold in, a wrong template, or when nothing is left.
    """
    record = resolve_task(task) if isinstance(task, str) else task
    rows = rows if isinstance(rows, Rows) else Rows(list(rows), split_name)
    question_of, gold_of = _columns(rows, record, prompt_column, answer_column)
    record_template, instruction = (record.template, record.instruction) if record else ("auto", BOXED_INSTRUCTION)
    chosen = choose(record_template if template in (None, "auto") else template, tokenizer, instruction)
    room = min(max_prompt_tokens, context_length - max_new_tokens)
    prompts, shortest = [], None
    for index, row in enumerate(rows):
        question = question_of(index)
        text, tokens = chosen.encode(question, tokenizer)
        columns = {**row, "question": question, "answer": gold_of(index)}
        if record and (solution := record.solution(row)) is not None:
            columns["solution"] = solution
        shortest = min(len(tokens), shortest or len(tokens))
        if len(tokens) <= room:
            prompts.append(Prompt(f"{split_name}/{index}", text, tokens, columns))
    if not prompts:
        raise ValueError(
            f"{rows.source}: all {len(rows)} prompts are longer than {room} tokens (shortest {shortest}); allowed is "
            f"the smaller of max_prompt_tokens {max_prompt_tokens} and context length {context_length} less "
            f"{max_new_tokens} new tokens"
        )
    return Prompts(prompts, len(rows) - len(prompts), chosen.name)


def _columns(
    rows: Rows, task: Task | None, prompt_column: str | None, answer_column: str | None
) -> tuple[Callable[[int], str], Callable[[int], str]]:
    """Return two functions: row index -> question, row index -> gold answer."""
    if task is None and not (prompt_column and answer_column):
        raise ValueError(
            f"{rows.source}: without a task, name the prompt and answer columns; the columns are {_listed(rows[0])}"
        )
    prompts = (prompt_column,) if prompt_column else task.question if task else ()
    answers = (answer_column,) if answer_column else tuple(task.answer) if task else ()

    def question(index: int) -> str:
        _, text = _cell(rows, index, prompts, "prompt")
        return text

    def gold(index: int) -> str:
        column, text = _cell(rows, index, answers, "answer")
        extract = task.answer.get(column, as_given) if task else as_given
        try:
            answer = extract(text)
        except ValueError as error:
            raise ValueError(f"{rows.where(index)}: column {column!r}: {error}") from error
        if not answer:
            raise ValueError(f"{rows.where(index)}: column {column!r} has no gold answer in it: {text[-60:]!r}")
        return answer

    return question, gold


def _cell(rows: Rows, index: int, candidates: Sequence[str], role: str) -> tuple[str, str]:
    """Return name and text of the first candidate column the row has."""
    row = rows[index]
    column = next((c for c in candidates if c in row), None)
    if column is None:
        names = " or ".join(map(repr, candidates))
        raise ValueError(f"{rows.where(index)}: no {role} column {names}; the columns are {_listed(row)}")
    value = row[column]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{rows.where(index)}: {role} column {column!r} is {value!r}; text or a number is needed")
    if not str(value).strip():
        raise ValueError(f"{rows.where(index)}: {role} column {column!r} is empty")
    return column, str(value)


def _listed(row: Row) -> str:
    return ", ".join(map(repr, row)) or "none"


class PromptSampler:
    """An endless sequence of steps of `per_step` distinct prompts. Every epoch visits each prompt once, in an order
    drawn from (seed, epoch). Where a step spans two epochs, prompts it already has are moved behind it in the second.
    """

    def __init__(self, prompts: Sequence[Prompt], per_step: int, seed: int):
        if not 1 <= per_step <= len(prompts):
            raise ValueError(
                f"{per_step} prompts per step wanted, there are {len(prompts)}: lower rollout.prompts_per_step or give "
                "more data (a step never holds a prompt twice)"
            )
        self._prompts, self._per_step, self._seed = list(prompts), per_step, seed
        self._fingerprint = _fingerprint(prompts)
        self._start_epoch(0, carried=[])

    def next(self) -> list[Prompt]:
        """Return the prompts of the next step."""
        step = self._order[self._position : self._position + self._per_step]
        self._position += len(step)
        if len(step) < self._per_step:
            self._start_epoch(self._epoch + 1, carried=step)
            self._position = self._per_step - len(step)
            step = step + self._order[: self._position]
        return [self._prompts[i] for i in step]

    def state(self) -> dict[str, Any]:
        """Return the place as JSON. `load_state` on the same data, per_step and seed continues exactly."""
        return {
            "fingerprint": self._fingerprint,
            "per_step": self._per_step,
            "seed": self._seed,
            "epoch": self._epoch,
            "position": self._position,
            "carried": self._carried,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken. Raises ValueError if the data, per_step or seed is another."""
        current = self.state()
        for name, what in [("fingerprint", "the prompts"), ("per_step", "prompts per step"), ("seed", "the seed")]:
            if state.get(name) != current[name]:
                raise ValueError(
                    f"cannot resume: {what} changed ({state.get(name)!r} in the checkpoint, {current[name]!r} now); "
                    "restore the data, template and batch of that run, or start a new one"
                )
        self._start_epoch(state["epoch"], state["carried"])
        self._position = state["position"]

    def _start_epoch(self, epoch: int, carried: list[int]) -> None:
        """Draw the order of an epoch; `carried` are the indices the step under way has from the epoch before."""
        order = list(permutation(len(self._prompts), f"{self._seed}/{epoch}"))
        repeated = set(carried)
        first = [i for i in order if i not in repeated][: self._per_step - len(carried)]
        self._order = list(dict.fromkeys([*first, *order]))
        self._epoch, self._carried, self._position = epoch, carried, 0


def _fingerprint(prompts: Sequence[Prompt]) -> str:
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(repr((prompt.id, prompt.tokens, prompt.columns.get("answer"))).encode())
    return f"{len(prompts)}-{digest.hexdigest()[:16]}"
