"""Rewards of single tokens in a run: in its signals, through a checkpoint, and as docs/rewards.md shows them."""

from dataclasses import replace

import pytest
import torch

from rlhf_pg.train.signals import terminal_reward
from tests.random_models import random_batch


def test_a_reward_is_on_its_token_and_the_rest_of_the_row_on_the_last_sampled_one():
    batch = replace(
        random_batch(prompts=1, samples=3),
        mask=torch.tensor([[True, True, True, False], [True, False, True, False], [True, True, True, True]]),
        logp_rollout=torch.zeros(3, 4),
        reward=torch.tensor([2.0, 0.25, -1.0]),
        token_reward=torch.tensor([[0.5, 0.0, 0.25, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]),
    )
    expected = [[0.5, 0.0, 1.5, 0.0], [1.0, 0.0, -0.75, 0.0], [0.0, 0.0, 0.0, -1.0]]
    assert terminal_reward(batch).tolist() == expected


def test_without_rewards_of_single_tokens_all_is_on_the_last_sampled_one():
    batch = replace(
        random_batch(prompts=1, samples=2),
        mask=torch.tensor([[True, True, False], [True, False, True]]),
        logp_rollout=torch.full((2, 3), -7.0),
        reward=torch.tensor([2.0, 0.1]),
    )
    assert terminal_reward(batch).tolist() == [[0.0, 2.0, 0.0], [0.0, 0.0, pytest.approx(0.1)]]


def test_a_row_of_rewards_sums_to_the_reward_of_the_row():
    batch = random_batch(prompts=4, samples=8, seed=3)
    given = torch.randn(batch.mask.shape, generator=torch.Generator().manual_seed(0)) * batch.mask
    sums = [sum(row) for row in terminal_reward(replace(batch, token_reward=given)).tolist()]
    assert sums == pytest.approx(batch.reward.tolist(), abs=1e-5)
