"""However a step's prompts are shared out, the same rows are picked: numbers are those of the whole step."""

from itertools import chain

import pytest
import torch

from rlhf_pg.config import Update
from rlhf_pg.data import sharding
from rlhf_pg.data.collate import collate
from rlhf_pg.training.gradient_step import minibatch_rows
from rlhf_pg.training.trust_region_step import _some_rows
from rlhf_pg.types import Completion, Prompt, Rollout, Score

KEPT = [2, 0, 3, 1, 2, 0, 1]  # samples with a reward of each prompt


def rollouts(prompts):
    """Two or three samples of each prompt; the first token of a row says which row of the step it is."""
    first = [sum(KEPT[:p]) for p in range(len(KEPT))]
    made = []
    for p in prompts:
        for j in range(3):
            reward = float(j) if j < KEPT[p] else None
            tokens = torch.tensor([first[p] + j, 5])
            completion = Completion(tokens, torch.zeros(2), "stop", 0)
            made.append(Rollout(Prompt(f"train/{p}", "", (1, 2)), completion, "", Score(reward, {}, "scored")))
    return made


def whole():
    return collate(rollouts(range(len(KEPT))))


def shards(size):
    return [sharding.shard(rollouts(range(len(KEPT))[r::size]), KEPT, r, size) for r in range(size)]


def step_rows(batch, rows):
    """Which rows of the step these are."""
    return batch.tokens[rows, 0].tolist()


@pytest.mark.parametrize("size", [1, 2, 3, 7, 9])
def test_rows_have_the_numbers_they_have_in_the_whole_batch(size):
    numbers = torch.cat([sharding.row_numbers(s)[0] for s in shards(size)])
    assert numbers.tolist() == torch.cat([s.tokens[:, 0] for s in shards(size)]).tolist()
    assert sorted(numbers.tolist()) == list(range(9))
    assert {sharding.row_numbers(s)[1] for s in shards(size)} == {9}
    assert {sharding.prompt_numbers(s)[1] for s in shards(size)} == {5}  # prompts without a reward do not count


@pytest.mark.parametrize("size", [2, 3, 9])
def test_minibatches_are_cut_from_the_whole_step(size):
    update = Update(epochs=2, minibatches=3)
    expected = [step_rows(whole(), rows) for rows in minibatch_rows(whole(), update, seed=4, step=2)]
    parts = [[step_rows(s, rows) for rows in minibatch_rows(s, update, seed=4, step=2)] for s in shards(size)]
    assert [sorted(chain(*of_ranks)) for of_ranks in zip(*parts, strict=True)] == [sorted(e) for e in expected]


@pytest.mark.parametrize("size", [2, 3, 9])
def test_the_rows_of_a_fisher_product_are_drawn_from_the_whole_step(size):
    expected = step_rows(whole(), _some_rows(whole(), 0.5, seed=3, step=1))
    assert sorted(t for s in shards(size) for t in step_rows(s, _some_rows(s, 0.5, seed=3, step=1))) == expected


def test_a_rank_without_prompts_has_an_empty_batch():
    last = shards(9)[-1]
    assert last.tokens.shape == (0, 1) and last.mask.dtype == torch.bool


def test_a_step_without_a_reward_is_refused_on_every_rank():
    with pytest.raises(ValueError, match="no sample of this step has a reward"):
        sharding.shard(rollouts([1]), [0] * len(KEPT), 1, 2)
