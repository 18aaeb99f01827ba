"""Whether a completion's answer is the reference answer, mathematically: 1.0 or 0.0.

The answer is the last `\\boxed{}` after any reasoning block, otherwise what `rlhf_pg.grading.extract` finds. A
completion that exhausts time or memory is rejected: it scores 0 with outcome "timeout".
"""

from rlhf_pg.grading import equality, extract


def math_answer(completion: str, answer: str, finish: str = "stop", prompt: str = "") -> dict:
    """1.0 when the answer is right; outcome "unparseable" or "truncated" when there is none."""
    if prompt.rstrip().endswith("<think>"):
        completion = "<think>" + completion
    found = extract.answer(completion, finished=finish == "stop")
    if found is None:
        return {"reward": 0.0, "outcome": "truncated" if finish == "length" else "unparseable"}
    return {"reward": float(equality.equal(extract.gold(str(answer)), found)), "outcome": "scored"}


math_answer.on_limit = 0.0
math_answer.limit_s = 5.0
