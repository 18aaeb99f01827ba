"""The GRPO record: credit and objective by hand, and what is left of it without std and clip."""

import math

import pytest
import torch
from torch.testing import assert_close

from rlhf_pg.algorithms import base
from rlhf_pg.algorithms.grpo import GRPOOptions, algorithm
from rlhf_pg.functional import normalize
from rlhf_pg.types import Batch, Credit, Signals

MASK = torch.tensor([[1, 1], [1, 0], [1, 1], [1, 1]], dtype=torch.bool)
GROUP = torch.tensor([0, 0, 1, 1])


def batch(reward):
    zeros = torch.zeros(4, 2, dtype=torch.float64)
    prompts = dict(prompt_tokens=torch.zeros(2, 1, dtype=torch.int64), prompt_lengths=torch.ones(2, dtype=torch.int64))
    return Batch(**prompts, group=GROUP, tokens=zeros.long(), mask=MASK, reward=reward, logp_rollout=zeros)  # pyright: ignore[reportArgumentType]


def options(**values):
    return GRPOOptions.model_validate(values)


def signals(reward, logp_old=None):
    """The reward on each row's last sampled token."""
    token_reward = torch.zeros(4, 2, dtype=torch.float64)
    token_reward[torch.arange(4), torch.tensor([1, 0, 1, 1])] = reward
    return Signals(token_reward=token_reward, logp_old=logp_old)


REWARD = torch.tensor([2.0, 0.0, 0.5, 0.5], dtype=torch.float64)  # the second prompt's samples score the same


def test_advantage_by_hand_on_every_token_of_the_row():
    """Group 0: mean 1, sample std sqrt(2); group 1: equal rewards, exactly 0."""
    actual = algorithm.credit(batch(REWARD), signals(REWARD), options()).advantage
    a = 1 / (math.sqrt(2) + 1e-4)
    assert_close(actual, torch.tensor([[a, a], [-a, -a], [0, 0], [0, 0]], dtype=torch.float64))


def test_options_of_the_advantage_by_hand():
    actual = algorithm.credit(batch(REWARD), signals(REWARD), options(scale_by_std=False)).advantage
    assert_close(actual[:, 0], torch.tensor([1.0, -1, 0, 0], dtype=torch.float64))
    actual = algorithm.credit(batch(REWARD), signals(REWARD), options(std_eps=1.0)).advantage
    assert actual[0, 0].item() == pytest.approx(1 / (math.sqrt(2) + 1))


def test_a_kl_penalty_on_earlier_tokens_counts_as_reward_of_the_row():
    """Row totals 2 - 0.5 and 0: mean 0.75."""
    inputs = signals(REWARD)
    inputs.token_reward[0, 0] -= 0.5
    actual = algorithm.credit(batch(REWARD), inputs, options(scale_by_std=False)).advantage
    assert_close(actual[:2, 0], torch.tensor([0.75, -0.75], dtype=torch.float64))


def test_objective_and_paper_normalisation_by_hand():
    """Ratios 1.5 (clipped to 1.2) and 0.5 on a row of advantage 1, 0.5 (clipped to 0.8) on a row of -1, 1 elsewhere.

    Rows: -(1.2 + 0.5) / 2, +0.8 / 1, 0, 0; the mean over four rows is (-0.85 + 0.8) / 4.
    """
    advantage = torch.tensor([[1.0, 1], [-1, -1], [0, 0], [0, 0]], dtype=torch.float64)
    old = torch.full((4, 2), -1.0, dtype=torch.float64)
    rho = torch.tensor([[1.5, 0.5], [0.5, 7.0], [1.0, 1.0], [1.0, 1.0]], dtype=torch.float64)  # 7.0 is padding
    paper = options()
    inputs = batch(REWARD), signals(REWARD, old), Credit(advantage), paper
    actual = algorithm.objective(old + rho.log(), torch.zeros(4, 2), *inputs)
    by_hand = torch.tensor([[-1.2, -0.5], [0.8, 7.0], [0, 0], [0, 0]], dtype=torch.float64)
    assert_close(actual.loss, by_hand)
    value = normalize.total(actual.loss, MASK, paper.denominator)
    assert value.item() == pytest.approx((-0.85 + 0.8) / 4, abs=1e-12)
    clipped = torch.tensor([[1.0, 0], [1, 0], [0, 0], [0, 0]], dtype=torch.float64)
    assert_close(actual.metrics["clip/fraction"], clipped)


def test_clip_bounds_reach_the_objective_each_on_its_own_side():
    """Ratio 1.25 at advantage 1: clipped at 1.2, not at DAPO's 1.28. Ratio 0.75 at -1: clipped at 0.8, not at 0.7."""
    old = torch.zeros(4, 2, dtype=torch.float64)
    logp = torch.tensor([[1.25, 1.25], [0.75, 0.75], [1, 1], [1, 1]], dtype=torch.float64).log()
    credit = Credit(torch.tensor([[1.0, 1], [-1, -1], [0, 0], [0, 0]], dtype=torch.float64))

    def losses(**changed):
        inputs = batch(REWARD), signals(REWARD, old), credit, options(**changed)
        return algorithm.objective(logp, torch.zeros(4, 2), *inputs).loss[:2, 0].tolist()

    assert losses() == pytest.approx([-1.2, 0.8])
    assert losses(clip_high=0.28) == pytest.approx([-1.25, 0.8])
    assert losses(clip_low=0.3) == pytest.approx([-1.2, 0.75])


def test_without_std_and_clip_it_is_reinforce_with_the_group_mean_as_baseline():
    """On-policy gradient for logp: -(r - mean of the group) / (row length * rows), by hand."""
    plain = options(scale_by_std=False, clip_low=0.0, clip_high=0.0)
    reward = torch.tensor([2.0, 0.0, 3.0, 0.5], dtype=torch.float64)
    logp = torch.full((4, 2), -0.7, dtype=torch.float64).requires_grad_()
    inputs = batch(reward), signals(reward, logp.detach())
    credit = algorithm.credit(*inputs, plain)
    loss = algorithm.objective(logp, torch.zeros(4, 2), *inputs, credit, plain).loss
    normalize.total(loss, MASK, plain.denominator).backward()
    baselined = torch.tensor([1.0, -1.0, 1.25, -1.25], dtype=torch.float64)
    length = torch.tensor([2.0, 1, 2, 2], dtype=torch.float64)
    expected = torch.where(MASK, (-baselined / length / 4)[:, None], 0)
    assert_close(logp.grad, expected, rtol=0, atol=1e-12)


def test_the_record_is_found_by_name_and_says_what_the_trainer_must_know():
    assert base.resolve("grpo") is algorithm
    assert (algorithm.update, algorithm.needs_critic, algorithm.min_group) == ("gradient", False, 2)
    assert (algorithm.options().denominator, algorithm.name) == ("sequence", "grpo")


def test_a_misspelt_name_gets_the_nearest_one():
    with pytest.raises(ValueError, match="did you mean 'grpo'"):
        base.resolve("gpro")
    with pytest.raises(ValueError, match="not an rlhf_pg Algorithm"):
        base.resolve("rlhf_pg.algorithms.grpo:GRPOOptions")
