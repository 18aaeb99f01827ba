"""Arithmetic on whole numbers: "12+34=" -> "46". Made for the embedded model, one character a token.

With `words` the question is one for a model that was trained on text: "What is 12 plus 34?".

Style "answer" imitates the digits alone. Style "steps" works like school: one column a step, lowest first, every
step the two digits, the carry coming in, then the carry going out and the digit: 27+48= -> "7+8+0=15 2+4+1=07 =75".
Each step is one small look-up, so a small model learns it from few examples. For a < b the difference b - a is worked
out and negated; products are worked out by the digits of b: 27*48= -> "27*8=216 27*40=1080 =1296". A share of `direct`
of these solutions leaves the steps out and only claims the result, "=75": a cold start from it thinks before it answers
only some of the time, and reinforcement learning can find out that thinking pays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

from pydantic import Field, field_validator, model_validator

from rlhf_pg.tasks.base import Options, Row, Task, permutation, uniform


class ArithmeticOptions(Options):
    operations: str = "+"  # any of + - *
    digits: int | None = Field(None, ge=1, le=9)  # operands from 0 to 99...9; default 2
    low: int | None = Field(None, ge=0)  # or operands from low to high
    high: int | None = Field(None, ge=0)
    words: bool = False  # ask "What is 12 plus 34?"
    style: Literal["answer", "steps"] = "answer"
    direct: float = Field(default=0.0, ge=0, le=1)  # of "steps": the share of solutions without the steps

    @field_validator("operations")
    @classmethod
    def _known_and_distinct(cls, value: str) -> str:
        if not value or set(value) - set("+-*") or len(set(value)) < len(value):
            raise ValueError(f"{value!r} must be some of the characters + - *, each once")
        return value

    @model_validator(mode="after")
    def _direct_is_of_steps(self) -> ArithmeticOptions:
        if self.direct and self.style != "steps":
            raise ValueError('direct is a share of the solutions of style "steps"')
        return self

    @model_validator(mode="after")
    def _one_range(self) -> ArithmeticOptions:
        if (self.low is None) != (self.high is None):
            raise ValueError("low and high go together")
        if self.low is not None and self.digits is not None:
            raise ValueError("give digits, or low and high, not both")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        return self

    def bounds(self) -> tuple[int, int]:
        """Return the smallest and the largest operand."""
        if self.low is not None and self.high is not None:
            return self.low, self.high
        return 0, 10 ** (self.digits or 2) - 1


WORDS = {"+": "plus", "-": "minus", "*": "times"}


def problems(seed: int, options: ArithmeticOptions, in_split: Callable[[str], bool]) -> Iterator[Row]:
    """Yield every problem of the space once. For the split 12+34 and 34+12 are one problem: neither leaks the other."""
    low, high = options.bounds()
    width = high - low + 1
    for index in permutation(len(options.operations) * width * width, f"arithmetic/{seed}"):
        pair, b = divmod(index, width)
        number, a = divmod(pair, width)
        operation, a, b = options.operations[number], a + low, b + low
        key = f"{a}-{b}" if operation == "-" else f"{min(a, b)}{operation}{max(a, b)}"
        if in_split(key):
            yield _row(a, operation, b, options)


def _row(a: int, operation: str, b: int, options: ArithmeticOptions) -> Row:
    formula, answer = f"{a}{operation}{b}=", str({"+": a + b, "-": a - b, "*": a * b}[operation])
    question = f"What is {a} {WORDS[operation]} {b}?" if options.words else formula
    solution = answer
    if options.style == "steps":
        direct = uniform(f"direct/{formula}") < options.direct
        solution = f"={answer}" if direct else f"{_steps(a, operation, b)} ={answer}"
    return {"question": question, "answer": answer, "solution": solution}


def _steps(a: int, operation: str, b: int) -> str:
    """Return the steps of the solution, as the text at the top of this file shows them."""
    if operation == "*":
        digits = [int(digit) * 10**place for place, digit in enumerate(reversed(str(b)))]
        return " ".join(f"{a}*{part}={a * part}" for part in digits)
    if operation == "-" and a < b:
        a, b = b, a
    steps, carry = [], 0
    for place in range(max(len(str(a)), len(str(b)))):
        x, y = a // 10**place % 10, b // 10**place % 10
        column = x + y + carry if operation == "+" else x - y - carry
        carry_out = int(column > 9 or column < 0)
        steps.append(f"{x}{operation}{y}{operation}{carry}={carry_out}{column % 10}")
        carry = carry_out
    return " ".join(steps)


task = Task("arithmetic", problems, ArithmeticOptions, template="plain")
