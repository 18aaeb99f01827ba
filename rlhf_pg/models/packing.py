"""The layout of a batch as one sequence of T packed positions, in which each prompt stands once.

    prompt 1 | prompt 2 | ... | row 1 of prompt 1 | row 2 of prompt 1 | ... | row 1 of prompt 2 | ...

There is no padding. The last token of a row predicts nothing and is left out, so N prompts of P tokens with G rows of
C tokens take N * (P + G * (C - 1)) positions; unpacked rows take N * G * (P + C). A prompt token attends to the prompt
up to itself; a row token attends to its whole prompt and to its row up to itself (`packed_attention.py`).

A group too large for one micro-batch is split: its prompt is forwarded first, alone; then its rows, in parts, read the
prompt's keys and values from a `Prefix`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from rlhf_pg.functional.shapes import lengths
from rlhf_pg.types import Batch, Prefix

Span = tuple[int, int]  # [first position, position after the last)


@dataclass(frozen=True)
class PackedBatch:
    """T packed positions, the last R of which are row tokens. Rows of a single token have no position and no number."""

    tokens: Tensor  # int64 [T]
    positions: Tensor  # int64 [T], within prompt + row: what rotary embeddings see
    prompt_spans: Sequence[Span]  # of each prompt; empty with a prefix
    row_spans: Sequence[Span]  # of each prompt: all of its rows
    row_count: int  # rows that have positions
    row_width: int  # positions of the longest row
    padded_index: Tensor  # int64 [R], place of each row token in rows padded to [row_count * row_width]
    state_index: Tensor  # int64 [M], position whose state predicts each sampled token; T stands for the prefix's last
    prefix: Prefix | None = None
    recorded: dict[int, tuple[Tensor, Tensor]] | None = None  # attention puts each layer's keys and values here
    attended: set[int] = field(default_factory=set)  # numbers of the layers whose attention has used this layout

    @property
    def rows_start(self) -> int:
        """Return the position at which the rows begin: the number of prompt positions."""
        return self.prompt_spans[-1][1] if self.prompt_spans else 0

    @property
    def equal_rows(self) -> bool:
        """Return whether all rows have one length, so that padding them is a reshape."""
        return self.row_count * self.row_width == len(self.padded_index)

    @cached_property
    def padded_keys(self) -> tuple[Tensor, Tensor]:
        """Return where the keys of each padded row are, and which of them each of its tokens attends to.

        Positions int64 [row_count, P + row_width], those of a prefix counted before all others; mask bool [row_count,
        1, row_width, P + row_width], P the longest prompt.
        """
        offset = self.prefix.length if self.prefix else 0
        prompt_spans = [(0, offset)] if self.prefix else self.prompt_spans
        device = self.tokens.device
        start = torch.tensor([a for a, _ in prompt_spans], device=device)  # [N]
        size = torch.tensor([b - a for a, b in prompt_spans], device=device)  # [N]
        position = torch.arange(self.rows_start, self.rows_start + len(self.padded_index), device=device)  # [R]
        ends = torch.tensor([b for _, b in self.row_spans], device=device)  # [N]
        group = torch.zeros(self.row_count, dtype=torch.int64, device=device)
        group[self.padded_index // max(1, self.row_width)] = torch.searchsorted(ends, position, right=True)
        longest = int(size.max())
        column = torch.arange(longest, device=device)
        prompt_keys = (start[:, None] + column).clamp(max=int((start + size).max()) - 1)[group]
        row_keys = torch.zeros(self.row_count * self.row_width, dtype=torch.int64, device=device)
        row_keys[self.padded_index] = position + offset
        keys = torch.cat([prompt_keys, row_keys.view(self.row_count, self.row_width)], dim=1)
        in_prompt = (column < size[group][:, None])[:, None, :].expand(-1, self.row_width, -1)
        causal = torch.ones(self.row_width, self.row_width, dtype=torch.bool, device=device).tril()
        return keys, torch.cat([in_prompt, causal.expand(self.row_count, -1, -1)], dim=2)[:, None]


def pack_prompts(batch: Batch) -> PackedBatch:
    """Lay out the prompts of a batch without their rows; `recorded` is empty, for their keys and values."""
    tokens, positions, spans, ends = _prompts(batch)
    return PackedBatch(tokens, positions, spans, [], 0, 0, tokens[:0], state_index=ends - 1, recorded={})


def pack(batch: Batch) -> PackedBatch:
    """Lay out a batch, whose rows may come in any order; with `batch.prefix`, its rows only."""
    columns = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
    order = torch.argsort(batch.group, stable=True)  # [B]: the rows of a prompt side by side
    group = batch.group[order]
    length = (lengths(batch.mask)[order] - 1).clamp(min=0)  # [B], positions of each row
    filled = columns < length[:, None]  # [B, C]
    row, column = filled.nonzero().unbind(dim=1)  # [R] each
    number = torch.cumsum(length > 0, 0) - 1  # [B], among the rows that have positions
    row_width = int(length.max())

    if batch.prefix:
        tokens = positions = batch.prompt_lengths.new_zeros(0)
        prompt_spans: list[Span] = []
        prompt_states = torch.full_like(batch.prompt_lengths, len(row))  # [N], state before the first token of a row
    else:
        tokens, positions, prompt_spans, prompt_ends = _prompts(batch)
        prompt_states = prompt_ends - 1
    start = len(tokens)
    per_prompt = torch.bincount(group, weights=length.double(), minlength=len(batch.prompt_lengths)).long()  # [N]
    ends = (torch.cumsum(per_prompt, 0) + start).tolist()
    first = torch.empty_like(length)
    first[order] = start + torch.cumsum(length, 0) - length  # [B], first position of each row, in the batch's order
    predicting = first[:, None] + columns - 1  # [B, C]
    predicting[:, 0] = prompt_states[batch.group]
    return PackedBatch(
        tokens=torch.cat([tokens, batch.tokens[order][filled]]),
        positions=torch.cat([positions, batch.prompt_lengths[group][row] + column]),
        prompt_spans=prompt_spans,
        row_spans=list(zip([start, *ends[:-1]], ends, strict=True)),
        row_count=int((length > 0).sum()),
        row_width=row_width,
        padded_index=number[row] * row_width + column,
        state_index=predicting[batch.mask],
        prefix=batch.prefix,
    )


def _prompts(batch: Batch) -> tuple[Tensor, Tensor, list[Span], Tensor]:
    """Return tokens and positions [sum of prompt lengths] of the prompts side by side, their spans, and ends [N]."""
    ends = torch.cumsum(batch.prompt_lengths, 0)
    spans = [(end - size, end) for end, size in zip(ends.tolist(), batch.prompt_lengths.tolist(), strict=True)]
    columns = torch.arange(batch.prompt_tokens.shape[1], device=ends.device)
    real = columns < batch.prompt_lengths[:, None]  # [N, P]
    return batch.prompt_tokens[real], real.nonzero()[:, 1], spans, ends
