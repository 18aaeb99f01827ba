"""Expected gradient of the real records, over every batch of a toy world, against the exact gradient of the reward.

What the trainer does is done here too: credit, objective, and `normalize.total` under the record's own denominator. The
"constant" one divides by the longest length, LENGTH.
"""

from functools import partial

import pytest
import torch
from torch.testing import assert_close

from rlhf_pg.algorithms.base import resolve
from tests.toy_world import LENGTH, build, expected_step

assert_exact = partial(assert_close, rtol=0, atol=1e-9)


@pytest.mark.parametrize("returns", ["trajectory", "reward_to_go"])
def test_reinforce(toy, returns):
    actual = expected_step(toy, resolve("reinforce"), 1, returns=returns)
    assert_exact(LENGTH * actual, toy.true_gradient())


def test_reinforce_in_batches_of_two(toy):
    assert_exact(LENGTH * expected_step(toy, resolve("reinforce"), 2), toy.true_gradient())


@pytest.mark.parametrize("returns", ["trajectory", "reward_to_go"])
@pytest.mark.parametrize("seed", [1, 2])
def test_reinforce_with_any_critic_whatever(toy, returns, seed):
    options = dict(value=100 * toy.table(seed), returns=returns)
    assert_exact(LENGTH * expected_step(toy, resolve("reinforce_baseline"), 1, **options), toy.true_gradient())


@pytest.mark.parametrize("returns", ["trajectory", "reward_to_go"])
def test_reinforce_with_leave_one_out_over_all_pairs(toy, returns):
    actual = expected_step(toy, resolve("reinforce_baseline"), 2, baseline="leave_one_out", returns=returns)
    assert_exact(LENGTH * actual, toy.true_gradient())


def test_rloo_over_all_pairs(toy):
    assert_exact(LENGTH * expected_step(toy, resolve("rloo"), 2), toy.true_gradient())


@pytest.mark.parametrize(("name", "options"), [("rloo", {}), ("reinforce_baseline", {"baseline": "leave_one_out"})])
def test_leave_one_out_over_all_triples(name, options):
    """Two tokens, at most two long: 3 sequences, 27 groups."""
    toy = build(holed=False, vocabulary=2, length=2)
    assert len(toy.tokens) == 3
    assert_exact(LENGTH * expected_step(toy, resolve(name), 3, **options), toy.true_gradient())


@pytest.mark.parametrize("seed", [1, 2])
def test_ppo_with_lambda_one_and_any_critic(toy, seed):
    options = dict(lam=1.0, standardise=False, denominator="constant")
    actual = expected_step(toy, resolve("ppo"), 1, value=100 * toy.table(seed), **options)
    assert_exact(LENGTH * actual, toy.true_gradient())


def true_value(toy):
    """V [K, C]: the expected reward from each state on, by enumeration."""
    p, value = toy.probability().detach(), torch.zeros_like(toy.reward)
    for state in range(len(toy.theta)):
        here = (toy.state == state) & toy.mask  # [K, C]
        rows, at = here.nonzero().unbind(1)
        rewards = torch.where(toy.mask, toy.reward, 0)
        to_go = torch.stack([rewards[row, t:].sum() for row, t in zip(rows, at, strict=True)])
        value[here] = (p[rows] * to_go).sum() / p[rows].sum()
    return value.where(toy.mask, torch.nan)


@pytest.mark.parametrize("name", ["ppo", "trpo"])
@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95])
def test_ppo_and_trpo_with_any_lambda_and_the_true_value(toy, name, lam):
    options = dict(lam=lam, standardise=False, denominator="constant")
    assert_exact(LENGTH * expected_step(toy, resolve(name), 1, value=true_value(toy), **options), toy.true_gradient())


def test_the_surrogate_of_trpo_where_it_starts(toy):
    actual = expected_step(toy, resolve("trpo"), 1, value=toy.table(3), denominator="constant")
    assert_exact(LENGTH * actual, toy.true_gradient())


@pytest.mark.parametrize("surrogate", ["clip", "cispo"])
def test_grpo_without_std_is_unbiased_but_for_the_factor_of_its_own_mean(toy, surrogate):
    """The group's mean holds the row's own reward: (n - 1) / n = 1/2 of the true gradient."""
    options = dict(scale_by_std=False, denominator="constant", surrogate=surrogate)
    assert_exact(LENGTH * expected_step(toy, resolve("grpo"), 2, **options), 0.5 * toy.true_gradient())


@pytest.mark.parametrize("returns", ["trajectory", "reward_to_go"])
def test_the_group_mean_shrinks_the_gradient_by_one_over_n(toy, returns):
    options = dict(baseline="group_mean", returns=returns)
    assert_exact(LENGTH * expected_step(toy, resolve("reinforce_baseline"), 2, **options), 0.5 * toy.true_gradient())
    small = build(holed=False, vocabulary=2, length=2)
    actual = expected_step(small, resolve("reinforce_baseline"), 3, **options)
    assert_exact(LENGTH * actual, 2 / 3 * small.true_gradient())


def test_the_expectation_does_see_a_bias(toy):
    """A positive control: a critic that looks at the token it is subtracted for."""
    value = torch.where(toy.mask, toy.tokens.double(), torch.nan)
    actual = expected_step(toy, resolve("reinforce_baseline"), 1, value=value)
    assert (LENGTH * actual - toy.true_gradient()).norm() > 0.1 * toy.true_gradient().norm()
