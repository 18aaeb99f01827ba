"""Batches are laid out as documented, and micro-batches respect their budget."""

import pytest
import torch

from rlhf_pg.data import collate
from rlhf_pg.types import Completion, Prompt, Rollout, Score
from tests.random_models import random_batch


def rollout(prompt_id, prompt_tokens, tokens, reward, token_rewards=None):
    completion = Completion(torch.tensor(tokens), -torch.arange(1.0, len(tokens) + 1), "stop", 0)
    score = Score(reward, {}, "scored", token_rewards=token_rewards)
    return Rollout(Prompt(prompt_id, "", tuple(prompt_tokens)), completion, "", score)


def test_rows_are_right_padded_grouped_and_the_last_token_is_kept():
    batch = collate.collate(
        [rollout("a", [5, 6], [1, 2, 9], 1.0), rollout("b", [7], [9], 0.0), rollout("a", [5, 6], [3, 9], 0.5)]
    )
    assert batch.prompt_tokens.tolist() == [[5, 6], [7, 0]]
    assert batch.prompt_lengths.tolist() == [2, 1]
    assert batch.group.tolist() == [0, 0, 1]
    assert batch.tokens.tolist() == [[1, 2, 9], [3, 9, 0], [9, 0, 0]]
    assert batch.mask.tolist() == [[True] * 3, [True, True, False], [True, False, False]]
    assert batch.reward.tolist() == [1.0, 0.5, 0.0]
    assert batch.logp_rollout.tolist() == [[-1, -2, -3], [-1, -2, 0], [-1, 0, 0]]


def test_an_excluded_sample_is_left_out_and_never_becomes_a_zero():
    batch = collate.collate([rollout("a", [5], [1], 1.0), rollout("a", [5], [2], None), rollout("b", [6], [3], None)])
    assert batch.reward.tolist() == [1.0] and batch.prompt_tokens.tolist() == [[5]]
    with pytest.raises(ValueError, match="no sample of this step has a reward"):
        collate.collate([rollout("a", [5], [1], None)])


def shuffled(rows: int) -> torch.Tensor:
    return torch.arange(rows)[torch.randperm(rows, generator=torch.Generator().manual_seed(0))]


@pytest.mark.parametrize("tokens", [1, 12, 20, 33, 80, 1000])
@pytest.mark.parametrize("shared", [True, False])
def test_micro_batches_partition_the_rows_within_the_budget(tokens, shared):
    batch = random_batch(prompts=6, samples=5, seed=2)
    found = list(collate.micro_batches(batch, shuffled(30), tokens, shared))
    assert sorted(torch.cat([rows for pieces in found for rows in pieces]).tolist()) == list(range(30))
    sizes = batch.mask.sum(dim=1)
    for pieces in found:
        for rows in pieces:
            prompts = batch.group[rows].unique()
            if shared:  # every prompt once (before its rows, where they are in pieces), no row's last token
                alone = len(pieces) > 1
                size = int((sizes[rows] - 1).sum()) + (0 if alone else int(batch.prompt_lengths[prompts].sum()))
            else:
                size = len(rows) * int(batch.prompt_lengths[prompts].max() + sizes[rows].max())
            assert size <= tokens or len(rows) == 1


def test_rows_of_a_prompt_go_in_parts_only_if_they_do_not_fit_and_then_by_themselves():
    batch = random_batch(prompts=6, samples=5, seed=2)
    for pieces in collate.micro_batches(batch, torch.arange(30), 16):
        rows = torch.cat(pieces)
        whole = int((batch.mask[rows].sum(dim=1) - 1).sum() + batch.prompt_lengths[batch.group[rows].unique()].sum())
        assert set(batch.group[rows].bincount(minlength=6).tolist()) <= {0, 5}
        assert (len(pieces) > 1) == (whole > 16)
        assert len(pieces) == 1 or len(batch.group[rows].unique()) == 1


def test_whole_rows_of_similar_length_go_together():
    batch = random_batch(prompts=6, samples=5, seed=2)
    length = batch.mask.sum(dim=1) + batch.prompt_lengths[batch.group]
    found = [rows for (rows,) in collate.micro_batches(batch, shuffled(30), 30, shared=False)]
    assert len(found) > 3 and length[torch.cat(found)].tolist() == sorted(length.tolist(), reverse=True)


def test_select_trims_columns_and_keeps_only_the_prompts_it_needs():
    batch = random_batch(prompts=3, samples=4)
    rows = torch.tensor([4, 6])
    part = collate.select(batch, rows)
    assert part.prompt_tokens.shape == (1, int(batch.prompt_lengths[1])) and part.group.tolist() == [0, 0]
    assert part.tokens.shape[1] == int(batch.mask[rows].sum(1).max())
    assert torch.equal(part.tokens[part.mask], batch.tokens[rows][batch.mask[rows]])


def test_rewards_of_single_tokens_are_laid_out_like_the_tokens_and_are_zero_in_rows_without():
    batch = collate.collate(
        [
            rollout("a", [5], [1, 2, 9], 1.75, (0.5, 0.0, -0.25)),
            rollout("b", [6], [9], 1.0),
            rollout("a", [5], [3, 9], 0.0, (0.125, -0.125)),
            rollout("a", [5], [1, 2, 3, 4, 9], None, (1.0, 1.0, 1.0, 1.0, 1.0)),
        ]
    )
    assert batch.token_reward is not None and batch.token_reward.dtype == torch.float32
    assert batch.token_reward.tolist() == [[0.5, 0.0, -0.25], [0.125, -0.125, 0.0], [0.0, 0.0, 0.0]]
    assert batch.reward.tolist() == [1.75, 0.0, 1.0]


def test_without_rewards_of_single_tokens_there_is_no_tensor_of_them():
    kept, left_out = rollout("a", [5], [1, 9], 1.0), rollout("a", [5], [1, 9], None, (1.0, 1.0))
    batch = collate.collate([kept, left_out])
    assert batch.token_reward is None
    assert collate.to(batch, "cpu").token_reward is None
    assert collate.select(batch, torch.tensor([0])).token_reward is None


def test_rewards_of_single_tokens_go_along_with_their_rows():
    batch = collate.collate(
        [rollout("a", [5], [1, 2, 9], 1.0, (1.0, 2.0, 3.0)), rollout("b", [6], [1, 9], 1.0, (4.0, 5.0))]
    )
    moved, part = collate.to(batch, "meta").token_reward, collate.select(batch, torch.tensor([1])).token_reward
    assert moved is not None and moved.device.type == "meta"
    assert part is not None and part.tolist() == [[4.0, 5.0]]
