"""math_answer: where an answer may stand, and texts made to do harm."""

import time

import pytest

from rlhf_pg.reward_fns.math_answer import math_answer


def reward(completion: str, answer: str = "42", finish: str = "stop", **more: str) -> tuple[float, str]:
    result = math_answer(completion, answer, finish, **more)
    return result["reward"], result["outcome"]


@pytest.mark.parametrize(
    "completion",
    [
        r"So \boxed{42}.",
        r"\boxed{41}, no, wait: \boxed{42}",
        r"<think>\boxed{7}</think> \boxed{42}",
        r"\boxed{41} <answer>42</answer>",
        "#### 42",
        "The final answer is $42$. I hope it is correct.",
        "Final Answer: The largest $n$ is 42.",
        "The answer is 42",
        "We get $x = 40 + 2$.",
        "In all she has 42",
        r"\(\boxed{42}\)",
        r"<answer>\boxed{42}</answer>",
    ],
)
def test_where_an_answer_may_stand(completion):
    assert reward(completion) == (1.0, "scored")


@pytest.mark.parametrize(
    ("completion", "outcome"),
    [
        (r"<think>\boxed{42}</think> I cannot tell.", "unparseable"),
        (r"<think> so \boxed{42}", "unparseable"),
        ("", "unparseable"),
        (" ".join(rf"\boxed{{{n}}}" for n in range(43)), "unparseable"),
        (r"\boxed{41} or \boxed{42}", "scored"),
        (r"\boxed{\text{gold}}", "scored"),
        (r"\boxed{42} hence \boxed{43}", "scored"),
    ],
)
def test_what_is_no_answer_or_a_wrong_one(completion, outcome):
    assert reward(completion) == (0.0, outcome)


def test_a_template_that_opens_the_reasoning_is_honoured():
    assert reward(r"\boxed{42}", prompt="... <think>") == (0.0, "unparseable")
    assert reward(r"hm</think>\boxed{42}", prompt="... <think>") == (1.0, "scored")


def test_a_truncated_text_counts_only_with_an_explicit_answer():
    assert reward("so it is 42", finish="length") == (0.0, "truncated")
    assert reward(r"so \boxed{42} and", finish="length") == (1.0, "scored")


HOSTILE = {
    "tower": r"\boxed{9^{9^{9^{9}}}}",
    "factorial": r"\boxed{(10^9)!}",
    "binomial": r"\boxed{\binom{10^9}{10^8}}",
    "gcd": r"\boxed{\gcd(2^{99999999},3^{99999999})}",
    "exponent": "1e1000000000",
    "sum": r"\boxed{\sum_{n=1}^{10^{12}}\frac1n}",
    "roots": r"\boxed{" + r"\sqrt{" * 5000 + "42" + "}" * 5001,
    "brackets": r"\boxed{" + "(" * 400 + "42" + ")" * 400 + "}",
    "open boxes": r"\boxed{" * 30_000,
    "dollars": "$" * 300_000,
    "digits": "9" * 300_000,
    "open formulas": r"\(" * 100_000,
    "open tags": "<answer>" * 50_000,
    "code": r"\boxed{__import__('os').system('touch {marker}')}",
    "call": "The answer is open('{marker}','w').write('x')",
    "surrogate": "\\boxed{\ud800}",
    "zero": r"\boxed{\frac{42}{0}}",
    "invisible": "\\boxed{4\u200b3}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_rejected_in_time_and_nothing_runs(name, tmp_path):
    marker = tmp_path / "ran"
    start = time.monotonic()
    assert reward(HOSTILE[name].replace("{marker}", str(marker)))[0] == 0.0
    assert time.monotonic() - start < 5
    assert not marker.exists()
    assert reward(r"\boxed{42}") == (1.0, "scored")
