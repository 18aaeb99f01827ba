"""What is known of each token before the update: its reward, with the KL penalty where the recipe puts it."""

from dataclasses import replace

import pytest
import torch

from rlhf_pg.algorithms.base import resolve
from rlhf_pg.config import KL, Critic, Optimizer, ScoringPasses, Update
from rlhf_pg.distributed.backend import Backend
from rlhf_pg.models.policy import Policy
from rlhf_pg.training.learner import Learner, Objective
from rlhf_pg.training.precompute import log_probs, signals, terminal_reward
from tests.random_models import random_batch, random_model

UPDATE = Update(tokens_per_microbatch=2048)


def learner(kl):
    algorithm = resolve("reinforce")
    policy = Policy(random_model())
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.0)
    objective = Objective(algorithm.bind({}), kl, max_length=6)
    passes = ScoringPasses.of(objective.algorithm, kl, UPDATE, Critic(), engine_is_trainer=False)
    settings = UPDATE, Optimizer()
    return Learner(policy, optimizer, Backend(), objective, *settings, seed=0, total_updates=1, passes=passes)


@pytest.mark.parametrize("holes", [False, True])
def test_the_penalty_lowers_the_reward_of_a_token_that_became_likelier_than_under_the_reference(holes):
    batch, other = random_batch(holes=holes), Policy(random_model(seed=1))
    under = learner(KL(coefficient=0.3, placement="reward", estimator="k1"))
    made = signals(under, lambda batch, poll: log_probs(other, batch, UPDATE), batch)
    difference = log_probs(under.policy, batch, UPDATE) - log_probs(other, batch, UPDATE)
    last = [max(t for t in range(batch.mask.shape[1]) if batch.mask[b, t]) for b in range(len(batch.group))]
    for b, t in torch.cartesian_prod(*(torch.arange(n) for n in batch.mask.shape)).tolist():
        expected = float(batch.reward[b]) * (t == last[b]) - 0.3 * float(difference[b, t]) * bool(batch.mask[b, t])
        assert float(made.token_reward[b, t]) == pytest.approx(expected, abs=1e-5)
    assert difference.abs().max() > 0.1


def test_the_coefficient_in_use_is_the_adapted_one():
    batch, under = random_batch(), learner(KL(coefficient=0.3, placement="reward", estimator="k1"))
    reference = torch.zeros_like(batch.logp_rollout)
    first = signals(under, lambda *_: reference, batch).token_reward - terminal_reward(batch)
    under.kl_coefficient = 0.6
    second = signals(under, lambda *_: reference, batch).token_reward - terminal_reward(batch)
    torch.testing.assert_close(second, 2 * first)


def test_what_lies_on_tokens_that_were_not_sampled_reaches_no_reward():
    batch = random_batch(holes=True)
    dense = torch.where(batch.mask, 0.25, torch.nan)
    made = terminal_reward(replace(batch, token_reward=dense))
    assert (made[~batch.mask] == 0).all()
    torch.testing.assert_close(made.sum(dim=1), batch.reward)
