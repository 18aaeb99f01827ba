"""GSM8K: grade-school word problems (Cobbe et al. 2021, arXiv:2110.14168). The gold answer stands after "####"."""

from __future__ import annotations

import re

from rlhf_pg.tasks.base import Row, Task

CALCULATOR = re.compile(r"<<[^<>]*>>")  # annotations such as <<48/2=24>>, which no model should imitate


def gold(answer: str) -> str:
    """Return the number after the last "####", or the text itself where there is none, without thousands separators.

    Raises ValueError when that is not a number.
    """
    number = answer.rsplit("####", 1)[-1].strip().replace(",", "")
    if not re.fullmatch(r"-?\d+(\.\d+)?", number):
        raise ValueError(f"no number after '####' in {answer[-60:]!r}")
    return number


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
