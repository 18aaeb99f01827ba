"""Preflight refuses a reward that does not tell right from wrong, and an end of sequence that gets lost."""

from dataclasses import replace

import pytest

from rlhf_pg.data import collate
from rlhf_pg.models.tokenizer import character_tokenizer
from rlhf_pg.preflight import checks
from rlhf_pg.rewards import plugin
from rlhf_pg.rewards.score import Scorer
from tests.preflight.sessions import EOS

# ---- gold answers

REWARDS = """
import time
def one(completion, answer): return 1.0
def zero(completion, answer): return 0.0
def half(completion, answer): return 0.5
def raises(completion, answer): raise KeyError("no such thing")
def hangs(completion, answer): time.sleep(60)
def boxed_only(completion, answer): return float(completion == "\\\\boxed{" + answer + "}")
def tagged_only(completion, answer): return float(completion.endswith("<answer>" + answer + "</answer>"))
def solution_only(completion, solution): return 2.0 * (completion == solution)
def batched(completions, answer, **rest): return [float(c == a) for c, a in zip(completions, answer)]
def first_is_wrong(completion, answer, question): return float(completion == answer and answer != FIRST)
def length(completion): return float(len(completion))
def short_and_right(completion, answer):
    return {"right": float(completion == answer), "brief": -0.001 * len(completion)}
def penalised(completion, answer): return -float(completion != answer)
def scaled(completion, answer): return 10.0 + 10.0 * (completion == answer)
def noisy(completion, answer): return {"right": float(completion == answer), "noise": -10.0 * (int(answer) % 7)}
def longer(completion, answer): return 0.001 * len(completion)
def backwards(completion, answer): return float(completion != answer)
def leaves_out(completion, answer): return None if completion != answer else 1.0
"""


def with_reward(session, tmp_path, *functions, timeout_s=10.0):
    path = tmp_path / "rewards_here.py"
    path.write_text(REWARDS + f"FIRST = {session.train_prompts[0].columns['answer']!r}\n")
    session.scorer = Scorer([plugin.resolve(f"{path}:{name}", timeout_s=timeout_s) for name in functions], workers=2)
    with session.scorer:
        return checks.gold_answers(session, pytest.fail)


@pytest.mark.parametrize("function", ["boxed_only", "tagged_only", "solution_only", "batched"])
def test_gold_in_any_usual_form_is_enough(session, tmp_path, function):
    found = with_reward(session, tmp_path, function)
    assert found.ok and found.figure.startswith("gold right 16 of 16, other rows' answers 0; the reward gives ")


SHAPED = {  # function -> (median gold, median wrong) worked out by hand for answers of two digits
    "short_and_right": "0.998, other rows' -0.002",
    "penalised": "0, other rows' -1",
    "scaled": "20, other rows' 10",
}


@pytest.mark.parametrize("function", SHAPED)
def test_a_shaped_reward_is_enough_if_gold_beats_other_answers(session, tmp_path, function):
    session.train_prompts = [with_answer(p, str(10 + i)) for i, p in enumerate(session.train_prompts[:16])]
    found = with_reward(session, tmp_path, function)
    assert found.ok and f"the reward gives gold answers {SHAPED[function]} (medians)" in found.figure


def with_answer(prompt, answer):
    columns = {name: value for name, value in prompt.columns.items() if name != "solution"}
    return replace(prompt, columns=columns | {"answer": answer})


def test_where_the_sum_hides_the_answer_the_named_part_is_judged(session, tmp_path):
    found = with_reward(session, tmp_path, "noisy")
    assert found.ok and "noisy/right gives gold answers 1, other rows' 0" in found.figure


def test_any_function_of_the_recipe_may_be_the_one_that_judges(session, tmp_path):
    found = with_reward(session, tmp_path, "length", "batched")
    assert found.ok and "batched gives gold answers 1, other rows' 0" in found.figure


@pytest.mark.parametrize("function", ["longer", "backwards", "leaves_out"])
def test_a_shaped_reward_that_prefers_others_is_refused(session, tmp_path, function):
    found = with_reward(session, tmp_path, function)
    assert found.ok is False and "apart by more than a tenth" in found.limit


@pytest.mark.parametrize(
    ("function", "figure"),
    [
        ("one", "the reward gives gold answers 1, other rows' 1"),
        ("zero", "the reward gives gold answers 0, other rows' 0 (medians); not right: train/0"),
        ("half", "the reward gives gold answers 0.5, other rows' 0.5"),
        (
            "first_is_wrong",
            "gold right 15 of 16, other rows' answers 0; the reward gives gold answers 1, other rows' 0 (medians); not "
            "right: train/0, gold",
        ),
    ],
)
def test_a_reward_that_does_not_tell_right_from_wrong_is_refused(session, tmp_path, function, figure):
    found = with_reward(session, tmp_path, function)
    assert found.ok is False and found.figure.startswith(figure)


@pytest.mark.parametrize(("function", "why"), [("raises", "no such thing"), ("hangs", "no answer within 0.2 s")])
def test_a_reward_that_raises_or_hangs_costs_two_calls(session, tmp_path, function, why):
    with pytest.raises(RuntimeError, match=rf"(?s)every one of 2 samples failed.*{why}"):
        with_reward(session, tmp_path, function, timeout_s=0.2)


def test_a_reward_that_reads_no_column_is_not_judged(session, tmp_path):
    found = with_reward(session, tmp_path, "length")
    assert found.ok is None and "'length' asks for no column by name" in found.figure


def test_rows_that_all_have_one_answer_are_compared_with_none(session, tmp_path):
    session.train_prompts = [replace(p, columns=p.columns | {"answer": "7"}) for p in session.train_prompts]
    assert with_reward(session, tmp_path, "batched").ok
    assert with_reward(session, tmp_path, "one").ok is False


def test_tags_that_are_special_tokens_reach_the_reward(session, tmp_path):
    session.tokenizer = character_tokenizer()
    tags = ["<think>", "</think>", "<answer>", "</answer>"]
    session.tokenizer.add_special_tokens({"additional_special_tokens": tags})
    found = with_reward(session, tmp_path, "tagged_only")
    assert found.ok and found.figure.startswith("gold right 16 of 16, other rows' answers 0; ")


def test_a_tag_that_ends_the_completion_is_missed_and_said(session, tmp_path):
    session.tokenizer = character_tokenizer()
    session.tokenizer.add_special_tokens({"additional_special_tokens": ["</answer>"]})  # 99
    session.engine.eos_ids = (1, 99)
    found = with_reward(session, tmp_path, "tagged_only")
    gold = session.train_prompts[0].columns["answer"]
    given, tagged = f"<think>x</think><answer>{gold}", f"<think>x</think><answer>{gold}</answer>"
    assert found.ok is False and f"which the tokenizer makes {given!r} of {tagged!r}" in found.figure


def test_a_gold_answer_that_the_tokenizer_drops_is_missed_and_said(session, tmp_path):
    session.train_prompts = [replace(p, columns=p.columns | {"answer": "½"}) for p in session.train_prompts]
    found = with_reward(session, tmp_path, "batched")  # the embedded tokenizer has no ½
    assert found.ok is False
    assert "gold '½', which the tokenizer makes '' of '½'" in found.figure


# ---- end of sequence


class Spelled:
    """A tokenizer that is another one but for what a test overrides."""

    def __init__(self, tokenizer, **overrides):
        self.tokenizer, self.overrides = tokenizer, overrides

    def __getattr__(self, name):
        return self.overrides[name] if name in self.overrides else getattr(self.tokenizer, name)


def eos_fault(session) -> str:
    found = checks.end_of_sequence(session, pytest.fail)
    assert found.ok is False
    return found.figure


def test_an_engine_that_stops_at_another_token_is_refused(session):
    session.engine.eos_ids = (5,)
    assert eos_fault(session) == "the engine stops at [5], not at '<eos>' (1)"


def test_an_eos_spelled_with_several_tokens_is_refused(session):
    letters = character_tokenizer()
    letters.add_tokens(["<end>"])  # an id that no text is encoded to
    spelled = Spelled(
        session.tokenizer, encode=lambda text, **kw: [3, 4, 5] if text == "<eos>" else letters.encode(text, **kw)
    )
    session.tokenizer = spelled
    assert eos_fault(session) == "'<eos>' is not a single token"


def test_a_prompt_that_ends_with_eos_is_refused(session):
    session.train_prompts = [replace(p, tokens=(*p.tokens, EOS)) for p in session.train_prompts]
    assert eos_fault(session) == "the prompt ends with token 1, which ends a completion"


def test_a_collator_that_takes_eos_for_padding_is_refused(session, monkeypatch):
    right = collate.collate

    def pad_is_eos(rollouts):
        batch = right(rollouts)
        return replace(batch, mask=batch.mask & (batch.tokens != EOS))

    monkeypatch.setattr(collate, "collate", pad_is_eos)
    assert eos_fault(session) == "the collator masks '<eos>' away"
