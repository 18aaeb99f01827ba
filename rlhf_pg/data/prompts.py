"""From data rows to prompts, and from prompts to steps: `load_rows` -> `to_prompts` -> `PromptSampler`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf_pg.data.columns import readers
from rlhf_pg.data.rows import Rows
from rlhf_pg.data.source import load_rows
from rlhf_pg.data.templates import Template, choose
from rlhf_pg.tasks.base import BOXED_INSTRUCTION, Row, Task, permutation
from rlhf_pg.tasks.base import resolve as resolve_task
from rlhf_pg.types import Prompt

__all__ = ["PromptSampler", "Prompts", "Rows", "load_rows", "to_prompts"]


@dataclass(frozen=True)
class Prompts:
    """The prompts that fit, and what a person should know about them."""

    prompts: list[Prompt]
    dropped: int  # rows whose prompt was too long
    template: str  # the one in use, never "auto"
    longest: int = 0  # tokens a prompt may have
    limit: str = ""  # what sets that, and what to do
    remarks: Sequence[str] = ()  # about files, rows and the template

    @property
    def dropped_note(self) -> str:
        """Return how many rows were dropped, by which limit and what to do; "" if none were."""
        total = self.dropped + len(self.prompts)
        too_long = f"{self.dropped} of {total} rows dropped, their prompts being longer than {self.longest} tokens"
        return f"{too_long}: {self.limit}" if self.dropped else ""


def to_prompts(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    *,
    split_name: str,
    prompt_column: str | None = None,
    answer_column: str | None = None,
    template: str | None = None,
    instruction: str | None = None,
    template_options: Mapping[str, Any] | None = None,
    max_prompt_tokens: int,
    context_length: int,
    max_new_tokens: int,
    task: str | Task | None = None,
    needs_answer: bool = True,
) -> Prompts:
    """Tokenize rows to prompts with id "split_name/row index", whose columns are the row with `question`, `answer`
    (gold, a str) and, where the task knows one, `solution`. The `question` of a conversation is the user's last turn.
    An assistant's turn after it is no part of the prompt, but `completion` where the row has no such column.

    Prompts longer than `max_prompt_tokens`, or than the context leaves after `max_new_tokens`, are dropped and counted.
    Raises ValueError for a missing column, an empty or missing question or answer (with its line), an answer the task
    finds no gold in, a wrong template or option of one, an instruction that no
    template takes, a row that cannot be rendered, or when nothing is left.
    """
    record = resolve_task(task) if isinstance(task, str) else task
    rows = rows if isinstance(rows, Rows) else Rows(list(rows), split_name)
    question_of, gold_of = readers(rows, record, prompt_column, answer_column, needs_answer=needs_answer)
    in_turns = not isinstance(question_of(0), str)
    chosen = _template(template, tokenizer, record, instruction, template_options, split_name, in_turns=in_turns)
    room = min(max_prompt_tokens, context_length - max_new_tokens)
    prompts, shortest, replies = [], None, 0
    for index, row in enumerate(rows):
        question, columns = question_of(index), dict(row)
        if isinstance(question, str) == in_turns:
            kinds = ("text", "messages") if in_turns else ("messages", "text")
            told = "the prompt is {}, and {} in {}; give them as one kind".format(*kinds, rows.where(0))
            raise ValueError(f"{rows.where(index)}: {told}")
        if not isinstance(question, str) and question[-1]["role"] == "assistant":
            *question, reply = question
            columns.setdefault("completion", reply["content"])
            replies += 1
        try:
            text, tokens = chosen.encode(question, tokenizer)
        except ValueError as error:
            raise ValueError(f"{rows.where(index)}: {error}") from error
        asked = question if isinstance(question, str) else question[-1]["content"]
        columns["question"] = asked
        if (answer := gold_of(index)) is not None:
            columns["answer"] = answer
        if record and (solution := record.solution(row)) is not None:
            columns["solution"] = solution
        shortest = min(len(tokens), shortest or len(tokens))
        if len(tokens) <= room:
            prompts.append(Prompt(f"{split_name}/{index}", text, tokens, columns))
    limit = _limit(max_prompt_tokens, context_length, max_new_tokens)
    if not prompts:
        too_long = f"all {len(rows)} prompts are longer than {room} tokens (shortest {shortest})"
        raise ValueError(f"{rows.source}: {too_long}: {limit}")
    name, remarks = chosen.name, [*rows.remarks(), *chosen.remarks(tokenizer)]  # remarks render a question: name first
    if replies:
        turns = f"{replies} conversation{'s' * (replies > 1)}"
        remarks.insert(0, f"the assistant's last turn of {turns} is no part of the prompt")
    return Prompts(prompts, len(rows) - len(prompts), name, room, limit, remarks)


def _template(
    template: str | None,
    tokenizer: PreTrainedTokenizerBase,
    task: Task | None,
    instruction: str | None,
    options: Mapping[str, Any] | None,
    split_name: str,
    *,
    in_turns: bool,
) -> Template:
    """Return the template for questions, or for conversations `in_turns`.

    A task may name its own for questions. Conversations without a task or instruction say themselves how to answer.
    """
    usual_template, usual_instruction = (
        (task.template, task.instruction) if task else ("auto", "" if in_turns else BOXED_INSTRUCTION)
    )
    if template in (None, "auto"):
        template = "auto" if in_turns else usual_template
    try:
        chosen = choose(template, tokenizer, usual_instruction if instruction is None else instruction, options)
        if instruction is not None and chosen.chat is None:
            raise ValueError(f"instruction: a turn of a chat template, and the template is {chosen.name}")
    except ValueError as error:
        raise ValueError(f"data.{split_name}: {error}") from error
    return chosen


def _limit(max_prompt_tokens: int, context_length: int, max_new_tokens: int) -> str:
    """Say what sets the tokens a prompt may have, and what to do about it."""
    room = context_length - max_new_tokens
    if max_prompt_tokens <= room:
        return f"raise data.max_prompt_tokens, up to {room}"
    return (
        f"the model's context length {context_length} less max_new_tokens {max_new_tokens}; lower that, or take a "
        "model of longer context"
    )


class PromptSampler:
    """An endless sequence of steps of `per_step` distinct prompts. Every epoch visits each prompt once, in an order
    drawn from (seed, epoch). Where a step spans two epochs, prompts it already has are moved behind it in the second.
    """

    def __init__(self, prompts: Sequence[Prompt], per_step: int, seed: int, dropped_note: str = ""):
        if not 1 <= per_step <= len(prompts):
            dropped = f" ({dropped_note})" if dropped_note else ""
            raise ValueError(
                f"{per_step} prompts per step wanted, there are {len(prompts)}{dropped}: lower "
                "rollout.prompts_per_step or give more data (a step never holds a prompt twice)"
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
