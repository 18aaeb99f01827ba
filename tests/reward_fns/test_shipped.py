"""format_r1, length, overlong and countdown."""

import pytest

from rlhf_pg.reward_fns.countdown import countdown
from rlhf_pg.reward_fns.format_r1 import format_r1
from rlhf_pg.reward_fns.length import length
from rlhf_pg.reward_fns.overlong import overlong


@pytest.mark.parametrize(
    ("completion", "prompt", "expected"),
    [
        ("<think>a</think>\n<answer>b</answer>", "", 1.0),
        ("<think>a</think><answer>b</answer>\n", "", 1.0),
        ("a</think><answer>b</answer>", "Assistant: <think>\n", 1.0),
        ("a</think><answer>b</answer>", "", 0.0),
        ("<think>a</think><answer>b</answer>", "Assistant: <think>", 0.0),
        ("<think> </think><answer>b</answer>", "", 0.0),
        ("<think>a</think><answer></answer>", "", 0.0),
        ("<answer>b</answer><think>a</think>", "", 0.0),
        ("<think>a</think> so <answer>b</answer>", "", 0.0),
        ("<think>a</think><answer>b</answer> and more", "", 0.0),
        ("<think>a</think><answer>b</answer><answer>c</answer>", "", 0.0),
        ("<think>a<think></think><answer>b</answer>", "", 0.0),
    ],
)
def test_the_format_is_both_blocks_once_in_order(completion, prompt, expected):
    assert format_r1(completion, prompt) == expected


def test_length_is_free_up_to_the_budget_and_then_falls_to_minus_one():
    assert [length("x" * n, length_budget=100) for n in (0, 100, 150, 200, 500)] == [0.0, 0.0, -0.5, -1.0, -1.0]
    assert length("x", finish="length") == -1.0


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [(1, 0.0), (16384, 0.0), (16385, -1 / 4096), (18432, -0.5), (19456, -0.75), (20480, -1.0), (30000, -1.0)],
)
def test_overlong_falls_over_the_last_fifth_of_the_limit_as_in_the_paper(tokens, expected):
    """DAPO, section 4.1: 16,384 tokens expected, 4,096 more as the buffer, 20,480 at most."""
    assert overlong(tokens, 20480, "stop") == pytest.approx(expected, abs=1e-12)


def test_overlong_of_a_cut_off_completion_is_minus_one_whatever_its_length():
    assert (overlong(20480, 20480, "length"), overlong(7, 20480, "length")) == (-1.0, -1.0)


def test_overlong_needs_no_limit_that_five_divides():
    assert [overlong(n, 6, "stop") for n in (4, 5, 6)] == pytest.approx([0.0, -1 / 6, -1.0])


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("<answer>(25 - 3) * 4</answer>", 1.0),
        ("<think>3*4</think>\n<answer>4*(25-3) = 88</answer>", 1.0),
        ("first\n4 × (25 − 3)", 1.0),
        ("<answer>25 + 3 * 4</answer>", 0.1),
        ("<answer>25 * 4</answer>", 0.0),
        ("<answer>25 * 4 - 3 * 4</answer>", 0.0),
        ("<answer>88</answer>", 0.0),
    ],
)
def test_countdown_wants_each_number_once(completion, expected):
    assert countdown(completion, [3, 4, 25], 88) == {"reward": expected, "outcome": "scored"}


def test_countdown_is_exact_and_follows_precedence():
    assert countdown("<answer>8/(3-8/3)</answer>", [3, 3, 8, 8], 24)["reward"] == 1.0
    assert countdown("<answer>7-2-1</answer>", [1, 2, 7], 4)["reward"] == 1.0
    assert countdown("<answer>8/2/2</answer>", [2, 2, 8], 2)["reward"] == 1.0


@pytest.mark.parametrize(
    "text",
    ["", "3 +", "(3+4", "3+4)", "3**4", "2(3)", "__import__('os')", "3/0", "-3", "(" * 100 + "3", "9" * 300, "3 4"],
)
def test_countdown_takes_no_nonsense(text):
    assert countdown(f"<answer>{text}</answer>", [3, 4], 7) == {"reward": 0.0, "outcome": "unparseable"}


def test_countdown_tells_cut_off_from_empty():
    assert countdown("3 + 4", [3, 4], 7, "length") == {"reward": 0.0, "outcome": "truncated"}
    assert countdown("<think>3 + 4", [3, 4], 7) == {"reward": 0.0, "outcome": "unparseable"}
