"""GSM8K: grade-school word problems (Cobbe et al. 2021, arXiv:2110.14168). The gold answer stands after "####"."""

from __future__ import annotations

import re

from rlhf_pg.grading import numbers
from rlhf_pg.tasks.base import Row, Task

CALCULATOR = re.compile(r"<<[^<>]*>>")  # annotations such as <<48/2=24>>, which no model should imitate


def gold(answer: str) -> str:
    """Return the number after the last "####", or in the text itself where there is none: digits as they are, any other
    spelling (1,000, 5e-05, $1/2$) as decimals or a fraction.

    Raises ValueError when that is not one number.
    """
    text = answer.rsplit("####", 1)[-1].strip()
    if re.fullmatch(r"-?\d+(\.\d+)?", text):
        return text
    found = numbers.every(numbers.plain(text), 2)
    if len(found) != 1 or found[0].value is None or found[0].percent:
        raise ValueError(f"no number after '####' in {answer[-60:]!r}, or one that can be read in two ways")
    return numbers.of_fraction(found[0].value)


def solution(row: Row) -> str | None:
    """Return the worked solution without its annotations."""
    text = row.get("answer")
    return CALCULATOR.sub("", text) if isinstance(text, str) else None


task = Task(
    "gsm8k",
    answer={"answer": gold},
    solution=solution,
    dataset="openai/gsm8k",
    subset="main",
    splits={"train": "train", "heldout": "test"},
)
