"""GSM8K: grade-school word problems (Cobbe et al. 2021, arXiv:2110.14168). The gold answer stands after "####"."""

from __future__ import annotations

import re

from rlhf_pg.tasks.base import Row, Task

CALCULATOR = re.compile(r"<<[^<>]*>>")  # annotations such as <<48/2=24>>, which no model should imitate


def gold(answer: str) -> str:
    """The number after the last "####", or the text itself where there is none, without thousands separators.

    Raises ValueError when that is not a number.
    """
    found = answer.rsplit("####", 1)[-1].strip().replace(",", "")
    if not re.fullmatch(r"-?\d+(\.\d+)?", found):
        raise ValueError(f"no number after '####' in {answer[-60:]!r}")
    return found


def solution(row: Row) -> str | None:
    worked = row.get("answer")
    return CALCULATOR.sub("", worked) if isinstance(worked, str) else None


task = Task(
    "gsm8k",
    answer={"answer": gold},
    solution=solution,
    dataset="openai/gsm8k",
    subset="main",
    splits={"train": "train", "heldout": "test"},
)
