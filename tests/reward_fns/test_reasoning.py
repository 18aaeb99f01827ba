"""One rule for every reward that reads an answer: what stands in unfinished reasoning does not count."""

import pytest

from rlhf_pg.reward_fns.countdown import countdown
from rlhf_pg.reward_fns.format_r1 import format_r1
from rlhf_pg.reward_fns.gsm8k import gsm8k
from rlhf_pg.reward_fns.math_answer import math_answer

ANSWERS = {"gsm8k": (r"\boxed{42}", r"\boxed{7}"), "countdown": ("<answer>(25-3)*4</answer>", "<answer>3</answer>")}


def rewards(template: str, prompt: str = "") -> list[float]:
    """The rewards of gsm8k, math_answer and countdown; RIGHT and WRONG in the template are answers."""
    right, wrong = ANSWERS["gsm8k"]
    text = template.replace("RIGHT", right).replace("WRONG", wrong)
    both = [gsm8k(text, "42", prompt=prompt), math_answer(text, "42", prompt=prompt)]
    right, wrong = ANSWERS["countdown"]
    text = template.replace("RIGHT", right).replace("WRONG", wrong)
    return [r["reward"] for r in (*both, countdown(text, [3, 4, 25], 88, prompt=prompt))]


@pytest.mark.parametrize(
    "tag", ["<think>", "<thinking>", "<reasoning>", "<thought>", "<THINK>", "< think >", "[THINK]"]
)
def test_an_answer_in_a_block_that_is_never_closed_has_no_reward(tag):
    closing = tag.replace("<", "</").replace("[", "[/").replace("/ ", "/")
    assert rewards(f"{tag} so RIGHT") == [0.0] * 3
    assert rewards(f"{tag} WRONG {closing} RIGHT") == [1.0] * 3
    assert rewards(f"{tag} RIGHT {closing} WRONG") == [0.0] * 3
    assert rewards(f"RIGHT {tag} hm") == [0.0] * 3
    assert rewards(f"{tag} a {closing} RIGHT {tag} b") == [0.0] * 3
    assert rewards(f"{tag} a {closing} WRONG {tag} b {closing} RIGHT") == [1.0] * 3
    assert rewards(f"{tag} {tag} a {closing} RIGHT") == [1.0] * 3
    assert rewards(f"{tag} RIGHT {closing}") == [0.0] * 3


@pytest.mark.parametrize("tag", ["<think>", "<think>\n", "<thinking>\n\n", "<reasoning> ", "[THINK]"])
def test_a_prompt_that_ends_with_the_tag_has_begun_the_reasoning(tag):
    closing = tag.strip().replace("<", "</").replace("[", "[/")
    prompt = f"User: 6 times 7? Assistant: {tag}"
    assert rewards("RIGHT", prompt) == [0.0] * 3
    assert rewards(f"WRONG {closing} RIGHT", prompt) == [1.0] * 3
    assert rewards(f"{tag} WRONG {closing} RIGHT", prompt) == [1.0] * 3
    assert rewards(f"RIGHT {closing} WRONG", prompt) == [0.0] * 3
    assert rewards("RIGHT", f"{prompt}{closing}\n\n") == [1.0] * 3


def test_what_precedes_a_closing_tag_alone_is_reasoning():
    assert rewards("RIGHT</think> WRONG") == [0.0] * 3
    assert rewards("WRONG</think> RIGHT") == [1.0] * 3
    assert rewards("WRONG</think> x </think> RIGHT") == [1.0] * 3


def test_a_block_ends_only_with_the_tag_of_its_name():
    assert rewards("<thinking> a <think> b </think> RIGHT") == [0.0] * 3
    assert rewards("<thinking> a <think> b </think> WRONG </thinking> RIGHT") == [1.0] * 3
    assert rewards("<think> a </reasoning> RIGHT") == [0.0] * 3


def test_text_about_thinking_is_no_tag():
    assert rewards("I think 3 < 4 and [think] so: RIGHT".replace("[think]", "(think)")) == [1.0] * 3


def test_the_r1_format_counts_a_tag_in_the_prompt_once():
    assert format_r1("a</think><answer>b</answer>", "Assistant: <think>\n") == 1.0
    assert format_r1("<think>a</think><answer>b</answer>", "Assistant: <think>\n") == 0.0
