"""MATH: competition problems (Hendrycks et al. 2021, arXiv:2103.03874). Gold: the `answer` column, or the last box."""

from __future__ import annotations

import re

from rlhf_pg.tasks.base import Task, as_given

BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*")


def last_boxed(text: str) -> str:
    r"""Return what stands in the last \boxed{...} or \fbox{...} whose braces balance, or after the last "\boxed 3".

    Escaped braces do not count. Raises ValueError when there is no such box.
    """
    for box in reversed(list(BOX.finditer(text))):
        content = _braced(text, box.end()) if text[box.end() :].startswith("{") else _bare(text, box.end())
        if content:
            return content
    raise ValueError(f"no \\boxed{{...}} with balanced braces in {text[-60:]!r}")


def _braced(text: str, start: int) -> str:
    depth = 0
    for brace in re.finditer(r"\\.|[{}]", text[start:], flags=re.DOTALL):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0 and brace.group() == "}":
            return text[start + 1 : start + brace.start()].strip()
    return ""


def _bare(text: str, start: int) -> str:
    """Return the number or word up to the end of the formula: LaTeX would box one token, the data means all of it."""
    return re.split(r"[$\s]", text[start:], maxsplit=1)[0].rstrip(".,")


task = Task(
    "math",
    question=("problem", "question"),
    answer={"answer": as_given, "solution": last_boxed},
    dataset="DigitalLearningGmbH/MATH-lighteval",
    splits={"train": "train", "heldout": "test"},
)
