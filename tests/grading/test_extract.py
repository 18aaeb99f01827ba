"""Which part of a text is the answer; tests/reward_fns/test_math_answer.py has more, through the reward."""

from rlhf_pg.grading import extract


def test_boxes_joined_by_and_are_one_answer():
    assert extract.extract_answer(r"\boxed{1} and $\boxed{2}$") == "1, 2"


def test_a_gold_may_be_a_whole_solution():
    assert extract.extract_gold(r"First 3, then $\boxed{42}$.") == "42"
    assert extract.extract_gold("3*14=<<3*14=42>>42\n#### 42") == "42"
