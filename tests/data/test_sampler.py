"""The prompt sampler: every epoch once, no prompt twice in a step, exact resume."""

import json

import pytest

from rlhf_pg.data.prompts import PromptSampler
from rlhf_pg.types import Prompt


def make(count: int, first: int = 0) -> list[Prompt]:
    return [Prompt(f"train/{i}", f"{i}", (i,), {"answer": str(i)}) for i in range(first, first + count)]


def ids(step: list[Prompt]) -> list[str]:
    return [prompt.id for prompt in step]


SIZES = [(1, 1), (5, 5), (5, 1), (5, 2), (5, 3), (5, 4), (12, 4), (100, 32)]


@pytest.mark.parametrize(("count", "per_step"), SIZES)
def test_no_prompt_twice_in_a_step(count, per_step):
    sampler = PromptSampler(make(count), per_step, seed=1)
    for _ in range(60):
        step = ids(sampler.next())
        assert len(step) == len(set(step)) == per_step


@pytest.mark.parametrize(("count", "per_step"), SIZES)
def test_every_epoch_visits_every_prompt_once(count, per_step):
    sampler = PromptSampler(make(count), per_step, seed=1)
    drawn = [i for _ in range(count * 4) for i in ids(sampler.next())]
    for start in range(0, len(drawn), count):
        assert sorted(drawn[start : start + count]) == sorted(ids(make(count)))


def test_epochs_and_seeds_have_orders_of_their_own():
    one, other = PromptSampler(make(50), 50, seed=0), PromptSampler(make(50), 50, seed=1)
    orders = [ids(one.next()), ids(one.next()), ids(other.next())]
    assert len({tuple(order) for order in orders}) == 3


@pytest.mark.parametrize(("count", "per_step"), SIZES)
def test_resume_at_any_step_gives_the_same_sequence(count, per_step):
    sampler = PromptSampler(make(count), per_step, seed=3)
    states, steps = [], []
    for _ in range(25):
        states.append(json.dumps(sampler.state()))
        steps.append(ids(sampler.next()))
    for at, state in enumerate(states):
        resumed = PromptSampler(make(count), per_step, seed=3)
        resumed.load_state(json.loads(state))
        assert [ids(resumed.next()) for _ in steps[at:]] == steps[at:]


def test_more_per_step_than_prompts_is_refused():
    with pytest.raises(ValueError, match=r"6 prompts per step wanted, there are 5.*rollout\.prompts_per_step"):
        PromptSampler(make(5), 6, seed=0)


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (PromptSampler(make(6), 2, seed=0), "the prompts changed"),
        (PromptSampler(make(5, first=1), 2, seed=0), "the prompts changed"),
        (PromptSampler([*make(4), Prompt("train/4", "4", (4,), {"answer": "x"})], 2, seed=0), "the prompts changed"),
        (PromptSampler([*make(4), Prompt("train/4", "4", (9,), {"answer": "4"})], 2, seed=0), "the prompts changed"),
        (PromptSampler(make(5), 3, seed=0), "prompts per step changed"),
        (PromptSampler(make(5), 2, seed=1), "the seed changed"),
    ],
)
def test_a_state_of_other_data_is_refused(other, told):
    with pytest.raises(ValueError, match=f"cannot resume: {told}"):
        PromptSampler(make(5), 2, seed=0).load_state(other.state())
