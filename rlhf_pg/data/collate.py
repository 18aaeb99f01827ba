"""From scored samples to tensors, and from one large batch to micro-batches that fit a token budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor

from rlhf_pg.types import Batch, Rollout


def collate(rollouts: Sequence[Rollout]) -> Batch:
    """Rows of the samples that have a reward, groups adjacent, right padded. Excluded samples are left out.

    Raises ValueError when no sample has a reward.
    """
    kept = [r for r in rollouts if r.score.reward is not None]
    if not kept:
        raise ValueError("no sample of this step has a reward; see the outcomes in rollouts/")
    order = {p: i for i, p in enumerate(dict.fromkeys(r.prompt.id for r in kept))}
    kept.sort(key=lambda r: order[r.prompt.id])
    prompts = {r.prompt.id: torch.tensor(r.prompt.tokens) for r in kept}
    tokens, _ = _pad([r.completion.tokens for r in kept], 0)
    logp, lengths = _pad([r.completion.logp for r in kept], 0.0)
    prompt_tokens, prompt_lengths = _pad(list(prompts.values()), 0)
    return Batch(
        prompt_tokens=prompt_tokens,
        prompt_lengths=prompt_lengths,
        group=torch.tensor([order[r.prompt.id] for r in kept]),
        tokens=tokens,
        mask=torch.arange(tokens.shape[1]) < lengths[:, None],
        reward=torch.tensor([r.score.reward for r in kept], dtype=torch.float32),
        logp_rollout=logp,
        token_reward=_token_reward(kept),
    )


def to(batch: Batch, device: torch.device | str) -> Batch:
    """The same batch on another device."""
    tensors = {f.name: getattr(batch, f.name) for f in fields(batch)}
    return replace(batch, **{name: tensor.to(device) for name, tensor in tensors.items() if tensor is not None})


def select(batch: Batch, rows: Tensor) -> Batch:
    """Some rows [M] as a batch of their own: only their prompts, columns trimmed to the longest among them."""
    prompts, group = torch.unique(batch.group[rows], return_inverse=True)
    width = max(1, int(lengths(batch.mask[rows]).max()))
    prompt_lengths = batch.prompt_lengths[prompts]
    return Batch(
        prompt_tokens=batch.prompt_tokens[prompts, : int(prompt_lengths.max())],
        prompt_lengths=prompt_lengths,
        group=group,
        tokens=batch.tokens[rows, :width],
        mask=batch.mask[rows, :width],
        reward=batch.reward[rows],
        logp_rollout=batch.logp_rollout[rows, :width],
        token_reward=None if batch.token_reward is None else batch.token_reward[rows, :width],
    )


def lengths(mask: Tensor) -> Tensor:
    """Columns up to and including the last True of each row, [B] from [B, C] (holes inside do not shorten a row)."""
    columns = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return (mask * columns).amax(dim=1)


def micro_batches(batch: Batch, rows: Tensor, tokens: int, shared: bool = True) -> Iterator[Tensor]:
    """Split rows [M] into lists of rows whose forward covers at most `tokens` positions (one row at the least).

    Positions of a list = its prompts (its rows, unless prompts are `shared`) * longest prompt + its rows * longest
    completion. Rows of a prompt stay together when they fit; similar lengths go together. How rows are split cannot
    change the gradient, only its cost.
    """
    current: list[int] = []
    prompts = width = prompt_width = 0
    for chunk, length, prompt_length in _chunks(batch, rows, tokens, shared):
        wide, prompt_wide = max(width, length), max(prompt_width, prompt_length)
        count = len(current) + len(chunk)
        if current and count * wide + (prompts + 1 if shared else count) * prompt_wide > tokens:
            yield rows[torch.tensor(current, device=rows.device)]
            current, prompts, wide, prompt_wide = [], 0, length, prompt_length
        current = current + chunk
        prompts, width, prompt_width = prompts + 1, wide, prompt_wide
    if current:
        yield rows[torch.tensor(current, device=rows.device)]


def _chunks(batch: Batch, rows: Tensor, tokens: int, shared: bool) -> Iterator[tuple[list[int], int, int]]:
    """(positions in `rows`, longest completion, prompt length) of one prompt each, longest first, at most `tokens`."""
    row_length = lengths(batch.mask[rows]).tolist()
    members: dict[int, list[int]] = {}
    for position, prompt in enumerate(batch.group[rows].tolist()):
        members.setdefault(prompt, []).append(position)
    longest = {prompt: max(row_length[i] for i in of) for prompt, of in members.items()}
    for prompt in sorted(members, key=lambda p: (-longest[p], p)):
        prompt_length = int(batch.prompt_lengths[prompt])
        room, each = (tokens - prompt_length, 0) if shared else (tokens, prompt_length)
        size = max(1, room // max(1, longest[prompt] + each))
        ordered = sorted(members[prompt], key=lambda i: (-row_length[i], i))
        for start in range(0, len(ordered), size):
            part = ordered[start : start + size]
            yield part, row_length[part[0]], prompt_length


def _token_reward(kept: Sequence[Rollout]) -> Tensor | None:
    """What each row's single tokens were given [B, C], 0 in rows without; None when no row was given any."""
    given = [r.score.token_rewards for r in kept]
    if all(rewards is None for rewards in given):
        return None
    filled = [[0.0] * len(r.completion.tokens) if g is None else g for r, g in zip(kept, given, strict=True)]
    return _pad([torch.tensor(row, dtype=torch.float32) for row in filled], 0.0)[0]


def _pad(rows: Sequence[Tensor], fill: float) -> tuple[Tensor, Tensor]:
    """Right padded [B, longest] and the lengths [B]."""
    size = torch.tensor([len(row) for row in rows])
    padded = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=fill)
    return padded, size
