"""Countdown: reach a target from given numbers, each used exactly once: "3 5 7 -> 22:" -> "3*5+7".

Problems are made from a random expression, so each has a solution; every intermediate value is a positive whole number.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from pydantic import Field, field_validator, model_validator

from rlhf_pg.tasks.base import Options, Row, Task

INSTRUCTION = (
    "You are given numbers and a target, written as 'numbers -> target:'. Find an expression that equals the target "
    "and uses each number exactly once, with + - * / and parentheses only. End with that expression alone in "
    "<answer> </answer>."
)
PATIENCE = 20_000  # draws in a row that bring nothing new: the problem space is used up
PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}
ATOM = 3

Term = tuple[int, str, int]  # value, text, precedence of its outermost operation


class CountdownOptions(Options):
    numbers: int = Field(3, ge=2, le=6)  # how many
    low: int = Field(1, ge=1)
    high: int = Field(9, ge=1)
    max_target: int = Field(99, ge=1)
    operations: str = "+-*/"

    @field_validator("operations")
    @classmethod
    def _known_and_distinct(cls, value: str) -> str:
        if not value or set(value) - set(PRECEDENCE) or len(set(value)) < len(value):
            raise ValueError(f"{value!r} must be some of the characters + - * /, each once")
        return value

    @model_validator(mode="after")
    def _ordered(self) -> CountdownOptions:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        return self


def problems(seed: int, options: CountdownOptions, in_split: Callable[[str], bool]) -> Iterator[Row]:
    """Yield distinct questions until no new one turns up. The split does not see the order of the numbers."""
    draw, seen, fruitless = random.Random(f"countdown/{seed}").random, set(), 0
    while fruitless < PATIENCE:
        fruitless += 1
        numbers = [options.low + _below(options.high - options.low + 1, draw) for _ in range(options.numbers)]
        solution = expression(numbers, options.operations, draw)
        if solution is None or solution[0] > options.max_target:
            continue
        target, text = solution
        key = f"{' '.join(map(str, sorted(numbers)))} -> {target}"
        question = f"{' '.join(map(str, numbers))} -> {target}:"
        if question not in seen and in_split(key):
            seen.add(question)
            fruitless = 0
            yield {"question": question, "answer": text, "solution": text, "numbers": numbers, "target": target}


def expression(numbers: list[int], operations: str, draw: Callable[[], float]) -> tuple[int, str] | None:
    """Return (value, text) of a random expression over all `numbers`; None when a step is no positive whole number."""
    terms: list[Term] = [(number, str(number), ATOM) for number in numbers]
    while len(terms) > 1:
        left, right = terms.pop(_below(len(terms), draw)), terms.pop(_below(len(terms), draw))
        joined = _join(left, operations[_below(len(operations), draw)], right)
        if joined is None:
            return None
        terms.append(joined)
    return terms[0][0], terms[0][1]


def _join(left: Term, operation: str, right: Term) -> Term | None:
    (x, left_text, left_precedence), (y, right_text, right_precedence) = left, right
    if (operation == "-" and x <= y) or (operation == "/" and x % y):
        return None
    value = {"+": x + y, "-": x - y, "*": x * y, "/": x // y}[operation]
    precedence = PRECEDENCE[operation]
    if left_precedence < precedence:
        left_text = f"({left_text})"
    if right_precedence < precedence or (right_precedence == precedence and operation in "-/"):
        right_text = f"({right_text})"
    return value, f"{left_text}{operation}{right_text}", precedence


def _below(size: int, draw: Callable[[], float]) -> int:
    return int(draw() * size)


task = Task("countdown", problems, CountdownOptions, template="plain", instruction=INSTRUCTION)
