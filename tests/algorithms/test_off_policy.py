"""Rollouts of another policy, weighed token by token: the expected gradient of the trainer's own losses, over every
sequence of a toy world, against what the theory in functional/importance.py says of it.

mu samples, pi is updated. What is expected is formed state by state: how often mu comes to each (d), and what mu earns
from there on after each action (Q).
"""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from rlhf_pg.algorithms.base import resolve
from rlhf_pg.config import KL, Mismatch, Optimizer, Update
from rlhf_pg.distributed.backend import Backend
from rlhf_pg.training.gradient_step import token_losses
from rlhf_pg.training.learner import Learner, Objective
from tests.toy_world import LENGTH, build

assert_exact = partial(assert_close, rtol=0, atol=1e-9)
ESTIMATORS = [("reinforce", {}), ("ppo", {"lam": 1.0, "standardise": False})]


def learner_of(cap, name="reinforce", options=None):
    algorithm = resolve(name)
    policy = torch.nn.Linear(1, 1)
    return Learner(
        policy,
        torch.optim.SGD(policy.parameters(), lr=0.0),
        Backend(),
        Objective(algorithm.bind(options or {}), KL(coefficient=0.0), LENGTH),
        Update(tokens_per_microbatch=2048, mismatch=Mismatch(cap=None if cap is None else min(cap, 1e300))),
        Optimizer(),
        seed=0,
        total_updates=1,
    )


def losses_of(learner, toy, mu, logp):
    """The trainer's unreduced policy loss [K, C] of every sequence, sampled by `mu` [S, V]."""
    rows = list(range(len(toy.tokens)))
    batch = replace(toy.batch(rows), logp_rollout=toy.logp(mu))
    signals = replace(toy.signals(rows), logp_old=None, value=torch.zeros_like(toy.reward))
    credit = learner.objective.algorithm.credit(batch, signals)
    return token_losses(learner, batch, signals, credit, logp, torch.full_like(logp, math.nan))[0]["policy"]


def expected_gradient(toy, mu, cap, name="reinforce", options=None):
    """Expectation, over sequences sampled from `mu` [S, V], of minus the gradient of what the trainer minimises."""
    losses = losses_of(learner_of(cap, name, options), toy, mu, toy.logp())
    per_row = torch.where(toy.mask, losses, 0).sum(dim=1)
    return -toy.gradient((toy.probability(mu).detach() * per_row).sum())


def visits_and_values(toy, mu):
    """d [S], how often mu comes to each state; Q [S, V], what it earns from there on after each action."""
    p, visits, values = toy.probability(mu).detach(), torch.zeros(len(mu)).double(), torch.zeros_like(mu)
    taken = torch.zeros_like(mu)
    for row, columns in enumerate(toy.mask):
        places = columns.nonzero().flatten().tolist()
        for t in places:
            s, a = int(toy.state[row, t]), int(toy.tokens[row, t])
            visits[s] += p[row]
            taken[s, a] += p[row]
            values[s, a] += p[row] * sum(float(toy.reward[row, u]) for u in places if u >= t)
    return visits, values / taken


def theory(toy, mu, cap=math.inf):
    """Gradient of sum_s d_mu(s) sum_a min(pi, cap mu) Q_mu(s, a) log pi, the first factors held fixed."""
    visits, values = visits_and_values(toy, mu)
    pi = toy.theta.detach().softmax(dim=-1)
    bounded = torch.minimum(pi, cap * mu.softmax(dim=-1))
    return toy.gradient((visits[:, None] * bounded * values * toy.theta.log_softmax(dim=-1)).sum())


@pytest.mark.parametrize(("name", "options"), ESTIMATORS)
def test_without_a_cap_the_actions_are_corrected_and_the_states_stay_those_of_the_sampling_policy(toy, name, options):
    mu = toy.other_theta(seed=1)
    actual = expected_gradient(toy, mu, math.inf, name, options)
    assert_exact(actual, theory(toy, mu))
    assert (actual - toy.true_gradient()).norm() > 0.1 * toy.true_gradient().norm()  # the bias is there
    visits, values = visits_and_values(toy, mu)  # and it is the gradient of the first-order surrogate at mu
    surrogate = (visits[:, None] * toy.theta.softmax(dim=-1) * values).sum()
    assert_exact(actual, toy.gradient(surrogate))


def test_with_one_token_it_is_the_policy_gradient():
    toy = build(holed=False, vocabulary=4, length=1)
    mu = toy.other_theta(seed=1)
    assert_exact(expected_gradient(toy, mu, math.inf), toy.true_gradient())
    unweighted = expected_gradient(toy, mu, None)
    assert (unweighted - toy.true_gradient()).norm() > 0.1 * toy.true_gradient().norm()


@pytest.mark.parametrize("cap", [1.0, 1.5, 2.0])
def test_a_cap_takes_away_what_lies_above_it_and_no_more(toy, cap):
    mu = toy.other_theta(seed=1)
    actual = expected_gradient(toy, mu, cap)
    assert_exact(actual, theory(toy, mu, cap))
    visits, values = visits_and_values(toy, mu)
    above = (toy.theta.detach().softmax(dim=-1) - cap * mu.softmax(dim=-1)).clamp(min=0)
    lost = toy.gradient((visits[:, None] * above * values * toy.theta.log_softmax(dim=-1)).sum())
    assert lost.norm() > 0.01 * actual.norm()
    assert_exact(expected_gradient(toy, mu, math.inf) - actual, lost)


def test_the_bias_shrinks_with_the_distance_between_the_policies(toy):
    def bias(distance):
        mu = toy.other_theta(seed=1, distance=distance)
        return (expected_gradient(toy, mu, math.inf) - toy.true_gradient()).norm().item()

    assert bias(1e-4) > 0
    assert bias(1e-3) / bias(1e-4) == pytest.approx(10, rel=0.02)


def test_nan_in_padding_does_not_reach_the_gradient(toy):
    logp = torch.where(toy.mask, toy.logp().detach(), 0).requires_grad_()
    losses = losses_of(learner_of(2.0), toy, toy.other_theta(seed=1), logp)
    (gradient,) = torch.autograd.grad(torch.where(toy.mask, losses, 0).sum(), logp)
    assert not toy.mask.all() and gradient.isfinite().all()


def test_rollouts_of_the_policy_itself_weigh_one(toy):
    here = toy.theta.detach()
    assert_exact(expected_gradient(toy, here, 1.0), toy.true_gradient())
