"""Which part of a step's rows this rank has. Prompts and rows are numbered over all ranks, so that a choice of some
(minibatches, the rows of a Fisher product) is the same choice however many ranks there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor

from rlhf_pg.data.collate import collate
from rlhf_pg.types import Batch, Rollout


def shard(rollouts: Sequence[Rollout], rewarded: Sequence[int], rank: int, size: int) -> Batch:
    """Return the batch of one rank of `size`, which has every `size`-th prompt of the step, from prompt `rank` on.

    `rollouts` are this rank's; `rewarded` has for every prompt of the step how many of its samples have a reward. A
    rank may have no row. Raises ValueError when no sample of the step has a reward.
    """
    if size == 1 or not any(rewarded):
        return collate(rollouts)
    number = [count - 1 for count in accumulate(bool(rows) for rows in rewarded)]  # of each prompt that has rows
    numbers = [number[i] for i in range(rank, len(rewarded), size) if rewarded[i]]
    batch = collate(rollouts) if numbers else _without_rows()
    sizes = [rows for rows in rewarded if rows]
    return replace(batch, number=torch.tensor(numbers, dtype=torch.int64), sizes=torch.tensor(sizes))


def prompt_numbers(batch: Batch) -> tuple[Tensor, int]:
    """Return the number of each prompt [N] among those of all ranks, and how many those are."""
    if batch.number is None or batch.sizes is None:
        return torch.arange(len(batch.prompt_lengths), device=batch.group.device), len(batch.prompt_lengths)
    return batch.number, len(batch.sizes)


def row_numbers(batch: Batch) -> tuple[Tensor, int]:
    """Return the number of each row [B] among those of all ranks, prompt by prompt, and how many those are."""
    if batch.number is None or batch.sizes is None:
        return torch.arange(len(batch.group), device=batch.group.device), len(batch.group)
    before = torch.cumsum(batch.sizes, 0) - batch.sizes  # [prompts of all ranks]
    rows = torch.bincount(batch.group, minlength=len(batch.number))  # [N]: rows of a group are adjacent
    inside = torch.arange(len(batch.group), device=batch.group.device) - (torch.cumsum(rows, 0) - rows)[batch.group]
    return before[batch.number][batch.group] + inside, int(batch.sizes.sum())


def _without_rows() -> Batch:
    """Return a batch of no prompt, no row, and one column."""
    none = torch.zeros(0, dtype=torch.int64)
    column = torch.zeros(0, 1)
    return Batch(
        prompt_tokens=column.long(),
        prompt_lengths=none,
        group=none,
        tokens=column.long(),
        mask=column.bool(),
        reward=column[:, 0],
        logp_rollout=column,
    )
