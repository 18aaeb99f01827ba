"""The hidden states from which sampled tokens are predicted: the common ground of policy and critic.

Two exact ways to the same numbers:

- packed (`packing.py`): each prompt is forwarded once, then its rows, without padding.
- padded: prompt + completion of each row, padded to the longest. For any architecture.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rlhf_pg.models.packing import PackedBatch, pack, pack_prompts
from rlhf_pg.types import Batch, Prefix


def states_before(decoder: Any, batch: Batch, share_prompts: bool) -> tuple[Tensor, Tensor]:
    """Return (states [M, H] just before each sampled token, index of those tokens [M] into the flat [B * C]).

    `decoder` is a model without its head. Heads are applied to these M states only.
    """
    index = batch.mask.reshape(-1).nonzero().squeeze(1)  # [M]
    if not share_prompts:
        hidden = _padded_forward(decoder, batch)
        return hidden.reshape(batch.mask.numel(), -1).index_select(0, index), index
    packed = pack(batch)
    states = _packed_forward(decoder, packed)  # [T, H]
    if packed.prefix:
        states = torch.cat([states, packed.prefix.last_state])
    return states.index_select(0, packed.state_index), index


def forward_prompt(decoder: nn.Module, batch: Batch) -> Prefix:
    """Forward the single prompt of a batch without its rows, which follow in parts (`Batch.prefix`)."""
    packed = pack_prompts(batch)
    last_state = _packed_forward(decoder, packed)[packed.state_index]  # [1, H]
    recorded = packed.recorded or {}
    sources = [x for layer in sorted(recorded) for x in recorded[layer]] + [last_state]
    leaves = [x.detach().requires_grad_(x.requires_grad) for x in sources]
    keys_values = list(zip(leaves[:-1:2], leaves[1::2], strict=True))
    return Prefix(keys_values, leaves[-1], sources, len(packed.tokens))


def backward_prompt(prefix: Prefix) -> None:
    """Take the gradients that the rows left in `prefix` through the prompt's forward; do nothing if there are none."""
    leaves = [*(x for pair in prefix.keys_values for x in pair), prefix.last_state]
    gradients = [(source, leaf.grad) for source, leaf in zip(prefix.sources, leaves, strict=True)]
    reached = [(source, grad) for source, grad in gradients if grad is not None]
    if reached:
        torch.autograd.backward([source for source, _ in reached], [grad for _, grad in reached])


def to_batch(values: Tensor, index: Tensor, mask: Tensor) -> Tensor:
    """Put values [M, ...] of the sampled tokens at their `index` [M]: -> [B, C, ...], 0 elsewhere."""
    shape = values.shape[1:]
    return values.new_zeros(mask.numel(), *shape).index_copy(0, index, values).view(*mask.shape, *shape)


def _packed_forward(decoder: nn.Module, packed: PackedBatch) -> Tensor:
    """Return the states [T, H] of packed positions. RuntimeError if a layer's attention did not get the layout."""
    if not len(packed.tokens):  # rows of single tokens after a prefix: its last state predicts them all
        assert packed.prefix
        return packed.prefix.last_state[:0]
    any_mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=packed.tokens.device)  # keeps the model from making one
    hidden = decoder(
        input_ids=packed.tokens[None],
        position_ids=packed.positions[None],
        attention_mask=any_mask,
        use_cache=False,
        packed=packed,
    ).last_hidden_state[0]
    if len(packed.attended) != decoder.config.get_text_config().num_hidden_layers:  # pyright: ignore
        raise RuntimeError(
            f"{type(decoder).__name__} does not pass unknown arguments on to its attention: set "
            "update.share_prompts=false"
        )
    return hidden


def _padded_forward(decoder: Any, batch: Batch) -> Tensor:
    """Return the states [B, C, H] before each column, of rows that were forwarded with their prompts."""
    lengths = batch.prompt_lengths[batch.group][:, None]  # [B, 1]
    columns = torch.arange(batch.tokens.shape[1], device=lengths.device)
    tokens = torch.cat([batch.prompt_tokens[batch.group], torch.zeros_like(batch.tokens)], dim=1)
    tokens = tokens.scatter(1, lengths + columns, batch.tokens)  # [B, P + C]: prompt, completion, no gap
    hidden = decoder(input_ids=tokens, use_cache=False).last_hidden_state
    before = (lengths + columns - 1)[:, :, None].expand(-1, -1, hidden.shape[-1])
    return hidden.gather(1, before)
