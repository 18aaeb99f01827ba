"""The rows of a batch as packed tokens [T], each prompt once: trees with prompts as trunks and rows as branches.

    prompt 1 | prompt 2 | ... | row 1 of prompt 1 | row 2 of prompt 1 | ... | row 1 of prompt 2 | ...

Nothing is padded. A row goes in without its last token, which predicts nothing: N prompts of P tokens with G rows of C
tokens take N * (P + G * (C - 1)) positions, where whole rows take N * G * (P + C). A prompt's token attends to what
comes before it in the prompt; a row's token to the whole prompt and to what comes before it in the row
(`tree_attention`).

A group larger than a micro-batch goes in parts: its prompt by itself, then rows that find the prompt's keys and values
in a `Prefix`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from rlhf_pg.functional.shapes import lengths
from rlhf_pg.types import Batch

Span = tuple[int, int]  # first position and the one after the last


@dataclass(frozen=True)
class Tree:
    """T packed positions of N prompts and B rows, R of them in rows that have more than one token."""

    tokens: Tensor  # int64 [T]
    positions: Tensor  # int64 [T], in prompt and row together
    prompts: Sequence[Span]  # of each prompt; none when the prompt went in before
    rows: Sequence[Span]  # of each prompt's rows, in packed positions
    place: Tensor  # int64 [R], where each of the rows' tokens stands if they are padded to [branches, width]
    branches: int  # rows with more than one token
    width: int  # tokens of the longest of them
    before: Tensor  # int64 [M], packed position of the state that predicts each sampled token; T: the prefix's last
    prefix: Prefix | None = None
    kept: dict[int, tuple[Tensor, Tensor]] | None = None  # by layer: keys and values, where they are asked for
    layers: set[int] = field(default_factory=set)  # that have attended by this tree

    @property
    def trunk(self) -> int:
        """Positions taken by prompts: the rows start here."""
        return self.prompts[-1][1] if self.prompts else 0

    @property
    def regular(self) -> bool:
        """Whether all branches have one length, so that padding them is a change of view."""
        return self.branches * self.width == len(self.place)

    @cached_property
    def padded_keys(self) -> tuple[Tensor, Tensor]:
        """For each branch: packed positions of its keys [branches, P + width], the prefix's counted before all others,
        and which of its tokens see which of them [branches, 1, width, P + width]."""
        offset = self.prefix.length if self.prefix else 0
        prompts = [(0, offset)] if self.prefix else self.prompts
        device = self.tokens.device
        start = torch.tensor([a for a, _ in prompts], device=device)
        size = torch.tensor([b - a for a, b in prompts], device=device)
        at = torch.arange(self.trunk, self.trunk + len(self.place), device=device)  # [R]
        ends = torch.tensor([b for _, b in self.rows], device=device)
        group = torch.zeros(self.branches, dtype=torch.int64, device=device)
        group[self.place // max(1, self.width)] = torch.searchsorted(ends, at, right=True)
        longest = int(size.max())
        column = torch.arange(longest, device=device)
        of_prompt = (start[:, None] + column.clamp(max=longest - 1)).clamp(max=int((start + size).max()) - 1)[group]
        own = torch.zeros(self.branches * self.width, dtype=torch.int64, device=device)
        own[self.place] = at + offset
        keys = torch.cat([of_prompt, own.view(self.branches, self.width)], dim=1)
        causal = torch.ones(self.width, self.width, dtype=torch.bool, device=device).tril()
        real = (column < size[group][:, None])[:, None, :].expand(-1, self.width, -1)
        return keys, torch.cat([real, causal.expand(self.branches, -1, -1)], dim=2)[:, None]


@dataclass(frozen=True)
class Prefix:
    """One prompt that was forwarded before its rows. To them it is constants whose gradient is collected."""

    made: Sequence[Tensor]  # each layer's keys and values [1, heads, P, size], then the last state [1, H]
    leaves: Sequence[Tensor]  # the same, cut off from what made them

    @classmethod
    def of(cls, tree: Tree, last: Tensor) -> Prefix:
        """From the prompt's tree after its forward, and its last state [1, H]."""
        made = [x for layer in sorted(tree.kept or {}) for x in (tree.kept or {})[layer]] + [last]
        return cls(made, [x.detach().requires_grad_(x.requires_grad) for x in made])

    def of_layer(self, number: int) -> tuple[Tensor, Tensor]:
        return self.leaves[2 * number], self.leaves[2 * number + 1]

    @property
    def last(self) -> Tensor:
        return self.leaves[-1]

    @property
    def length(self) -> int:
        """P."""
        return self.leaves[0].shape[2]

    def backward(self) -> None:
        """Hand the gradient that the rows left here on to the prompt's forward. Nothing to do without gradients."""
        reached = [(x, leaf.grad) for x, leaf in zip(self.made, self.leaves, strict=True) if leaf.grad is not None]
        if reached:
            torch.autograd.backward([x for x, _ in reached], [grad for _, grad in reached])


def plant(batch: Batch, keep: bool = False) -> Tree:
    """The tree of a batch whose rows may come in any order. `keep`: its prompts alone, their keys and values kept."""
    device, columns = batch.tokens.device, batch.tokens.shape[1]
    prefix = batch.prefix
    sizes = [] if prefix else batch.prompt_lengths.tolist()
    trunk = sum(sizes)
    prompt_ends = torch.cumsum(batch.prompt_lengths, 0)  # [N]
    prompts = [(end - size, end) for end, size in zip(prompt_ends.tolist(), sizes, strict=bool(sizes))]
    in_prompt = torch.arange(batch.prompt_tokens.shape[1], device=device) < batch.prompt_lengths[:, None]  # [N, P]
    tokens, positions = batch.prompt_tokens[in_prompt], in_prompt.nonzero()[:, 1]
    if prefix:
        tokens, positions = tokens[:0], positions[:0]
    if keep:
        none = torch.zeros(0, dtype=torch.int64, device=device)
        return Tree(tokens, positions, prompts, [(trunk, trunk)] * len(prompts), none, 0, 0, prompt_ends - 1, kept={})

    order = torch.argsort(batch.group, stable=True)  # [B]: the rows of a prompt side by side
    inside = (lengths(batch.mask)[order] - 1).clamp(min=0)  # [B], tokens of each row that go in
    filled = torch.arange(columns, device=device) < inside[:, None]  # [B, C]
    row, column = filled.nonzero().unbind(dim=1)  # [R] each
    of_rows = torch.bincount(batch.group[order], weights=inside.double(), minlength=len(batch.prompt_lengths)).long()
    row_ends = (torch.cumsum(of_rows, 0) + trunk).tolist()
    starts = [trunk, *row_ends[:-1]]
    branch = torch.cumsum(inside > 0, 0) - 1  # [B], number among the rows that have more than one token
    width = int(inside.max())

    first = torch.empty_like(inside)
    first[order] = trunk + torch.cumsum(inside, 0) - inside  # [B] in the batch's own order
    ends = prompt_ends - 1 if not prefix else torch.full_like(prompt_ends, len(row))  # state before column 0
    of_column = first[:, None] + torch.arange(columns, device=device) - 1  # [B, C]
    of_column[:, 0] = ends[batch.group]
    return Tree(
        tokens=torch.cat([tokens, batch.tokens[order][filled]]),
        positions=torch.cat([positions, batch.prompt_lengths[batch.group[order]][row] + column]),
        prompts=prompts,
        rows=list(zip(starts, row_ends, strict=True)),
        place=branch[row] * width + column,
        branches=int((inside > 0).sum()),
        width=width,
        before=of_column[batch.mask],
        prefix=prefix,
    )
