"""The Task record, how a name becomes one, and what generated tasks share: a stable split and a stable order.

Only `random.Random(text).random()` and SHA-256 decide anything, the two things that stay the same in every process and
Python version, so a recipe names the same problems everywhere.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rlhf_pg.names import load_record, nearest

Row = dict[str, Any]
BOXED_INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
HELDOUT_SHARE = 0.1  # of the problem space
DEFAULT_COUNT = {"train": 4096, "heldout": 256}


class Options(BaseModel):
    """The options of every generated task; a task file subclasses it to add its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    count: int | None = Field(None, ge=1)  # rows; None: as many as there are, at most DEFAULT_COUNT


def as_given(text: str) -> str:
    return text.strip()


def given_solution(row: Row) -> str | None:
    return row.get("solution")


@dataclass(frozen=True)
class Task:
    """Where problems come from and how a data row becomes question, answer and worked solution.

    A generated task has `problems(seed, options, in_split)`, which yields rows in an order drawn from `seed`, and only
    those with `in_split(key)` of their canonical key: membership of a split depends on the key, never on the seed.
    """

    name: str
    problems: Callable[[int, Any, Callable[[str], bool]], Iterator[Row]] | None = None
    options: type[Options] = Options
    question: tuple[str, ...] = ("question",)  # columns, the first one present is used
    answer: Mapping[str, Callable[[str], str]] = field(default_factory=lambda: {"answer": as_given})  # column -> gold
    solution: Callable[[Row], str | None] = given_solution  # what a cold start imitates
    dataset: str | None = None  # on the hub
    subset: str | None = None
    splits: Mapping[str, str] = field(default_factory=dict)  # our names -> the hub's
    template: str = "auto"  # what "auto" means is decided by the tokenizer
    instruction: str = BOXED_INSTRUCTION  # system prompt of a chat template

    def rows(self, split: str = "train", seed: int = 0, options: Mapping[str, Any] | None = None) -> list[Row]:
        """Generate the rows of "train" or "heldout": distinct problems, the two splits disjoint whatever the seeds.

        Raises ValueError for an unknown split or option, and for a `count` above the number of problems there are.
        """
        if self.problems is None:
            raise ValueError(f"task {self.name!r} reads rows from a file or data set; give a path or a data set name")
        if split not in DEFAULT_COUNT:
            raise ValueError(f"task {self.name!r} has no split {split!r}: generated tasks have 'train' and 'heldout'")
        parsed = self.parse(options or {})
        problems = self.problems(seed, parsed, lambda key: _is_heldout(self.name, key) == (split == "heldout"))
        rows = list(itertools.islice(problems, parsed.count or DEFAULT_COUNT[split]))
        if len(rows) < (parsed.count or 1):
            raise ValueError(
                f"task {self.name!r}: {parsed.count or 'no'} {split} problems wanted, these options allow {len(rows)}; "
                "lower count or widen the options"
            )
        return rows

    def parse(self, options: Mapping[str, Any]) -> Options:
        """Return checked options. Raises ValueError naming the wrong option and the nearest right one."""
        for name in options.keys() - self.options.model_fields.keys():
            fields = list(self.options.model_fields)
            raise ValueError(
                f"task {self.name!r} has no option {name!r}: it has {', '.join(fields)}{nearest(name, fields)}"
            )
        try:
            return self.options(**options)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ValueError(f"task {self.name!r}, options{'.' * bool(where)}{where}: {first['msg']}") from error


def resolve(name: str) -> Task:
    """Return a task by shipped name ("gsm8k") or dotted path; see `names.load_record`."""
    return load_record(name, "rlhf_pg.tasks", Task)


def permutation(size: int, key: str) -> Iterator[int]:
    """Yield 0 .. size-1 in an order drawn from `key`: lazy Fisher-Yates, which costs what is read of it."""
    draw, moved = random.Random(key).random, {}
    for i in range(size):
        j = i + int(draw() * (size - i))
        yield moved.get(j, j)
        moved[j] = moved.pop(i, i)


def uniform(text: str) -> float:
    """Return a number in [0, 1) that is the same for the same text everywhere."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def _is_heldout(task: str, key: str) -> bool:
    return uniform(f"{task}/{key}") < HELDOUT_SHARE
