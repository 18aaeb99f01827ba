"""Whether a completion's answer is mathematically the reference answer: 1.0 or 0.0.

docs/rewards.md says where the answer is and when two answers are the same. A completion that exhausts time or memory
scores 0 with outcome "timeout".
"""

from rlhf_pg.grading.equality import grade
from rlhf_pg.grading.numbers import as_text


def math_answer(completion: str, answer: str | float, finish: str = "stop", prompt: str = "") -> dict:
    """Return 1.0 for the right answer; outcome "unparseable" or "truncated" where there is none."""
    correct = grade(completion, as_text(answer), finished=finish == "stop", prompt=prompt)
    if correct is None:
        return {"reward": 0.0, "outcome": "truncated" if finish == "length" else "unparseable"}
    return {"reward": float(correct), "outcome": "scored"}


math_answer.on_limit = 0.0
math_answer.limit_s = 5.0
