"""GSM8K's verdicts: which number of a text is the answer, and when two numbers are the same."""

import pytest

from reward_fns.gsm8k import gsm8k


def verdict(completion: str, answer: str, finish: str = "stop") -> tuple[float, str]:
    result = gsm8k(completion, answer, finish)
    return result["reward"], result["outcome"]


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("He pays 3*4=<<3*4=12>>12\n#### 12", "worked\n#### 12"),
        ("so <<3*4=12>>12\nA: 12", "3*4=<<3*4=12>>12\nA: 12"),
        ("A: 70,000", "A: 70000"),
        ("#### 70000", "#### 70,000"),
        ("A: 18.0", "A: 18"),
        ("#### $18.", "#### 18"),
        ("#### -3", "#### -3"),
        ("The answer is 18.", "#### 18"),
        ("So she makes $18 a day.", "18"),
        ("She has 5 - 3 = 2 left", "#### 2"),
        (r"thus \boxed{18}", "#### 18"),
        (r"thus $\boxed{\$1,800.50}$ in all", "1800.5"),
        ("**Answer:** 18 dollars", "#### 18"),
        ("A: 12\nA: 18", "A: 18"),
        ("<think>#### 7</think> the answer is 18", "#### 18"),
        ("0.5", "#### 1/2"),
        ("It is 25%", "#### 25"),
    ],
)
def test_right_answers_count(completion, answer):
    assert verdict(completion, answer) == (1.0, "scored")


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("A: 26", "A: 18"),
        ("#### 18\n#### 26", "#### 18"),
        ("#### 180", "#### 18"),
        ("#### 1.8", "#### 18"),
        ("#### -18", "#### 18"),
        ("18 and then #### 26", "#### 18"),
        ("#### 18, 5", "#### 185"),
    ],
)
def test_wrong_answers_do_not(completion, answer):
    assert verdict(completion, answer) == (0.0, "scored")


def test_a_solution_in_calculator_notation_without_marker_was_cut_off():
    assert verdict("so 3*4 = <<3*4=12>>12", "#### 12") == (0.0, "unparseable")
    assert verdict("3*4 = <<3*4=12>>12, the answer is 12 if", "#### 12") == (0.0, "unparseable")
    assert verdict("so 3*4 = 12", "3*4=<<3*4=12>>12\nA: 12") == (0.0, "unparseable")


def test_the_last_number_of_a_truncated_text_is_no_answer():
    assert verdict("so 3*4 = 12", "#### 12", "length") == (0.0, "truncated")
    assert verdict("#### 12 and so on and", "#### 12", "length") == (1.0, "scored")


def test_no_number_is_unparseable():
    assert verdict("I cannot tell", "#### 12") == (0.0, "unparseable")
    assert verdict("", "#### 12") == (0.0, "unparseable")


def test_a_gold_without_number_is_an_error():
    with pytest.raises(ValueError, match="no number"):
        gsm8k("12", "twelve")
