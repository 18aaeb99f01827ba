"""From scored samples to tensors, and from one large batch to micro-batches that fit a token budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor

from rlhf_pg.functional.shapes import lengths
from rlhf_pg.types import Batch, Rollout

NO_GRADIENT_FACTOR = 4  # micro-batches of passes without gradients are that much larger: no activations are kept


def collate(rollouts: Sequence[Rollout]) -> Batch:
    """Return the rows of the samples that have a reward, groups adjacent, right padded; excluded samples are left out.

    Raises ValueError when no sample has a reward.
    """
    rows = [r for r in rollouts if r.score.reward is not None]
    if not rows:
        raise ValueError("no sample of this step has a reward; see the outcomes in rollouts/")
    order = {p: i for i, p in enumerate(dict.fromkeys(r.prompt.id for r in rows))}
    rows.sort(key=lambda r: order[r.prompt.id])
    prompts = {r.prompt.id: torch.tensor(r.prompt.tokens) for r in rows}
    tokens, _ = _pad([r.completion.tokens for r in rows], 0)
    logp, lengths = _pad([r.completion.logp for r in rows], 0.0)
    prompt_tokens, prompt_lengths = _pad(list(prompts.values()), 0)
    return Batch(
        prompt_tokens=prompt_tokens,
        prompt_lengths=prompt_lengths,
        group=torch.tensor([order[r.prompt.id] for r in rows]),
        tokens=tokens,
        mask=torch.arange(tokens.shape[1]) < lengths[:, None],
        reward=torch.tensor([r.score.reward for r in rows], dtype=torch.float32),
        logp_rollout=logp,
        token_reward=_token_reward(rows),
    )


def to(batch: Batch, device: torch.device | str) -> Batch:
    """Return the batch on another device."""
    tensors = {f.name: getattr(batch, f.name) for f in fields(batch)}
    return replace(batch, **{name: tensor.to(device) for name, tensor in tensors.items() if tensor is not None})


def select(batch: Batch, rows: Tensor) -> Batch:
    """Return some rows [M] as a batch of their own: only their prompts, columns trimmed to the longest among them."""
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


def micro_batches(batch: Batch, rows: Tensor, tokens: int, shared: bool = True) -> Iterator[list[Tensor]]:
    """Split rows [M] into micro-batches of at most `tokens` positions (one row at the least).

    Yield lists of one tensor of rows; or, for a prompt with too many rows for one forward, of several that share that
    prompt, which is forwarded before them. Positions: with prompts `shared`, those of the packed sequence
    (`models/packing.py`), else rows * (longest prompt + longest completion). Rows of a prompt stay together when they
    fit; similar lengths go together. How rows are split cannot change the gradient, only its cost.
    """
    yield from _packed(batch, rows, tokens) if shared else _padded(batch, rows, tokens)


def positions(batch: Batch, shared: bool) -> int:
    """Return how many positions the forward of a micro-batch covers."""
    if not shared:
        return len(batch.group) * (batch.prompt_tokens.shape[1] + batch.tokens.shape[1])
    return int((lengths(batch.mask) - 1).clamp(min=0).sum()) + (0 if batch.prefix else int(batch.prompt_lengths.sum()))


def _packed(batch: Batch, rows: Tensor, tokens: int) -> Iterator[list[Tensor]]:
    row_length = (lengths(batch.mask[rows]) - 1).clamp(min=0).tolist()
    prompt_length = batch.prompt_lengths.tolist()
    members: dict[int, list[int]] = {}
    for position, prompt in enumerate(batch.group[rows].tolist()):
        members.setdefault(prompt, []).append(position)
    for of_prompt in members.values():
        of_prompt.sort(key=lambda i: (-row_length[i], i))
    current: list[int] = []
    used = 0
    for prompt, of_prompt in sorted(members.items(), key=lambda item: (-row_length[item[1][0]], item[0])):
        size = prompt_length[prompt] + sum(row_length[i] for i in of_prompt)
        if current and used + size > tokens:
            yield [rows[torch.tensor(current, device=rows.device)]]
            current, used = [], 0
        if size > tokens and len(of_prompt) > 1:
            room = tokens - prompt_length[prompt]  # the prompt's activations are kept beside those of each part
            yield [rows[torch.tensor(part, device=rows.device)] for part in _portions(of_prompt, row_length, room)]
        else:
            current, used = current + of_prompt, used + size
    if current:
        yield [rows[torch.tensor(current, device=rows.device)]]


def _portions(of_prompt: Sequence[int], row_length: Sequence[int], tokens: int) -> list[list[int]]:
    """Split rows of one prompt into parts of at most `tokens` positions, or of a single row."""
    parts: list[list[int]] = [[]]
    used = 0
    for i in of_prompt:
        if parts[-1] and used + row_length[i] > tokens:
            parts.append([])
            used = 0
        parts[-1].append(i)
        used += row_length[i]
    return parts


def _padded(batch: Batch, rows: Tensor, tokens: int) -> Iterator[list[Tensor]]:
    row_length = lengths(batch.mask[rows]).tolist()
    prompt_length = batch.prompt_lengths[batch.group[rows]].tolist()
    current: list[int] = []
    longest = longest_prompt = 0
    for i in sorted(range(len(rows)), key=lambda i: (-row_length[i] - prompt_length[i], i)):
        wide, prompt_wide = max(longest, row_length[i]), max(longest_prompt, prompt_length[i])
        if current and (len(current) + 1) * (wide + prompt_wide) > tokens:
            yield [rows[torch.tensor(current, device=rows.device)]]
            current, wide, prompt_wide = [], row_length[i], prompt_length[i]
        current = [*current, i]
        longest, longest_prompt = wide, prompt_wide
    if current:
        yield [rows[torch.tensor(current, device=rows.device)]]


def _token_reward(rollouts: Sequence[Rollout]) -> Tensor | None:
    """Return the rewards of single tokens [B, C], 0 in rows without any; None when no row has any."""
    if all(r.score.token_rewards is None for r in rollouts):
        return None
    rewards = (r.score.token_rewards or [0.0] * len(r.completion.tokens) for r in rollouts)
    return _pad([torch.tensor(row, dtype=torch.float32) for row in rewards], 0.0)[0]


def _pad(rows: Sequence[Tensor], fill: float) -> tuple[Tensor, Tensor]:
    """Return rows right padded [B, longest], and their lengths [B]."""
    padded = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=fill)
    return padded, torch.tensor([len(row) for row in rows])
