"""The estimators against the exact gradient of the expected reward, every sequence of a toy world enumerated."""

from functools import partial

import pytest
import torch
from torch.testing import assert_close

from rlhf_pg.functional import credit, objectives

assert_exact = partial(assert_close, rtol=0, atol=1e-9)


def pairs(toy):
    """All ordered pairs of sequences: rows [2 K^2], group ids [2 K^2], probability of each pair [K^2]."""
    k = len(toy.tokens)
    first, second = torch.arange(k).repeat_interleave(k), torch.arange(k).repeat(k)
    p = toy.probability().detach()
    return torch.stack([first, second], dim=1).flatten(), torch.arange(k * k).repeat_interleave(2), p[first] * p[second]


def expected_pair_gradient(toy, advantage, rows, probability):
    """Expectation over pairs of the gradient of the mean over the pair's two rows, advantage [2 K^2]."""
    spread = advantage[:, None].expand(-1, toy.tokens.shape[1])
    loss = torch.where(toy.mask[rows], objectives.score_function(toy.logp()[rows], spread), 0).sum(dim=1)  # [2 K^2]
    return -toy.gradient((probability.repeat_interleave(2) * loss).sum() / 2)


def test_the_toy_worlds_probabilities_add_to_one(toy):
    assert len(toy.tokens) == 15
    assert_close(toy.probability().sum(), torch.tensor(1.0, dtype=torch.float64))


def test_full_return_is_unbiased(toy):
    advantage = credit.trajectory_return(toy.reward, toy.mask)
    assert_exact(toy.expected_gradient(objectives.score_function(toy.logp(), advantage)), toy.true_gradient())


def test_reward_to_go_is_unbiased(toy):
    advantage = credit.reward_to_go(toy.reward, toy.mask)
    assert not torch.equal(advantage, credit.trajectory_return(toy.reward, toy.mask))
    assert_exact(toy.expected_gradient(objectives.score_function(toy.logp(), advantage)), toy.true_gradient())


def test_any_state_dependent_baseline_is_unbiased(toy):
    baseline = torch.randn(len(toy.theta), dtype=torch.float64, generator=torch.Generator().manual_seed(1))[toy.state]
    advantage = credit.reward_to_go(toy.reward, toy.mask) - baseline
    assert_exact(toy.expected_gradient(objectives.score_function(toy.logp(), advantage)), toy.true_gradient())


def test_gae_with_lambda_one_and_any_value_is_unbiased(toy):
    value = torch.randn(len(toy.theta), dtype=torch.float64, generator=torch.Generator().manual_seed(2))[toy.state]
    advantage, _ = credit.gae(toy.reward, value, toy.mask, gamma=1.0, lam=1.0)
    assert_exact(toy.expected_gradient(objectives.score_function(toy.logp(), advantage)), toy.true_gradient())


def test_gae_with_lambda_zero_is_unbiased_when_the_value_is_exact(toy):
    """One-step temporal differences: right only with the true value function, found here by enumeration."""
    p = toy.probability().detach()
    to_go = credit.reward_to_go(toy.reward, toy.mask)
    value = torch.zeros(len(toy.theta), dtype=torch.float64)
    for s in range(len(value)):
        here = (toy.state == s) & toy.mask
        weight = p[:, None] * here
        value[s] = (weight * to_go).sum() / weight.sum()
    advantage, _ = credit.gae(toy.reward, value[toy.state], toy.mask, gamma=1.0, lam=0.0)
    assert_exact(toy.expected_gradient(objectives.score_function(toy.logp(), advantage)), toy.true_gradient())


def test_ratio_and_clipped_ratio_have_the_policy_gradient_at_ratio_one(toy):
    advantage = credit.reward_to_go(toy.reward, toy.mask)
    logp, old = toy.logp(), toy.logp().detach()
    assert_exact(toy.expected_gradient(objectives.ratio(logp, old, advantage)), toy.true_gradient())
    clipped = objectives.clipped_ratio(toy.logp(), old, advantage, 0.2, 0.2)
    assert_exact(toy.expected_gradient(clipped), toy.true_gradient())


def test_ratio_corrects_off_policy_samples_of_one_step():
    """Bandit: sum_a old(a) * ratio(a) * r(a) differentiates to the gradient of the expected reward under pi."""
    random = torch.Generator().manual_seed(3)
    theta, old_theta, reward = torch.randn(3, 5, dtype=torch.float64, generator=random).unbind()
    theta.requires_grad_()
    logp, old = theta.log_softmax(0)[:, None], old_theta.log_softmax(0)[:, None]  # one row per action [5, 1]
    estimate = torch.autograd.grad((old.exp() * objectives.ratio(logp, old, reward[:, None])).sum(), theta)[0]
    exact = torch.autograd.grad((theta.softmax(0) * reward).sum(), theta)[0]
    assert_exact(-estimate, exact)


def test_leave_one_out_is_unbiased_over_pairs(toy):
    rows, group, probability = pairs(toy)
    advantage = credit.leave_one_out(toy.row_reward()[rows], group)
    assert_exact(expected_pair_gradient(toy, advantage, rows, probability), toy.true_gradient())


def test_group_mean_shrinks_the_gradient_by_one_minus_one_over_g(toy):
    rows, group, probability = pairs(toy)
    advantage = credit.group_advantage(toy.row_reward()[rows], group, scale=False)
    assert_exact(expected_pair_gradient(toy, advantage, rows, probability), 0.5 * toy.true_gradient())


def test_group_std_turns_rewards_into_ranks_in_a_group_of_two(toy):
    """The bias of GRPO's std, exactly: in a pair (r - mean) / std is +-1/sqrt(2), so the size of the reward is lost.

    Its expected gradient is that of the rank sum_j p_j sign(r_i - r_j) / sqrt(2), another direction than the true
    gradient's (in this world, cosine 0.981).
    """
    rows, group, probability = pairs(toy)
    reward = toy.row_reward()
    advantage = credit.group_advantage(reward[rows], group, scale=True, eps=0.0)
    estimate = expected_pair_gradient(toy, advantage, rows, probability)
    rank = (toy.probability().detach() * (reward[:, None] - reward[None, :]).sign()).sum(dim=1) / 2**0.5
    assert_exact(estimate, toy.true_gradient(rank))
    cosine = torch.cosine_similarity(estimate.flatten(), toy.true_gradient().flatten(), dim=0)
    assert cosine.item() == pytest.approx(0.981, abs=1e-3)
