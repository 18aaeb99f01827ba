"""Hidden states from which each completion token is predicted, [B, C, H], prompts forwarded once per group.

Two exact ways to the same numbers:

- shared: each prompt is forwarded once with a key/value cache that keeps its gradient; the cache is repeated over the
  prompt's rows and only completion tokens are forwarded. Work per group: P + G * C positions.
- plain: each row is forwarded whole, prompt and completion. Work per group: G * (P + C) positions. Any architecture.

Policy and critic both stand on this; column t is the state before completion token t.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer

from rlhf_pg.types import Batch


def hidden_states(decoder: nn.Module, batch: Batch, share_prompts: bool) -> Tensor:
    """[B, C, H]: what the decoder (a model without its head) holds just before each completion token."""
    return _shared(decoder, batch) if share_prompts else _plain(decoder, batch)


def can_share_prompts(config: PretrainedConfig) -> bool:
    """Whether every layer attends to everything before it, which a repeated prompt cache relies on."""
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None) or ["full_attention"]
    return all(kind == "full_attention" for kind in kinds) and not getattr(text, "sliding_window", None)


def at_sampled(hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The states before sampled tokens [M, H], and where they are, [M] into the flat [B * C]."""
    scored = mask.reshape(-1).nonzero().squeeze(1)  # [M]: heads are applied to these positions only
    return hidden.reshape(mask.numel(), -1).index_select(0, scored), scored


def spread(values: Tensor, scored: Tensor, mask: Tensor) -> Tensor:
    """Values [M] of the sampled tokens back in place, [B, C], 0 elsewhere."""
    return values.new_zeros(mask.numel()).index_copy(0, scored, values).view(mask.shape)


def _shared(decoder: nn.Module, batch: Batch) -> Tensor:
    cache = DynamicCache()
    prompt = decoder(input_ids=batch.prompt_tokens, past_key_values=cache, use_cache=True).last_hidden_state
    last = (batch.prompt_lengths - 1)[:, None, None].expand(-1, 1, prompt.shape[-1])
    first = _repeat(prompt.gather(1, last), batch.group)  # [B, 1, H] predicts column 0
    width = batch.tokens.shape[1]
    if width == 1:
        return first
    for layer in cast(list[DynamicLayer], cache.layers):
        layer.keys, layer.values = _repeat(layer.keys, batch.group), _repeat(layer.values, batch.group)
    lengths = batch.prompt_lengths[batch.group]  # [B]
    columns = torch.arange(width - 1, device=lengths.device)
    slots = torch.arange(batch.prompt_tokens.shape[1] + width - 1, device=lengths.device)
    padding = (slots >= lengths[:, None]) & (slots < batch.prompt_tokens.shape[1])  # [B, P + C - 1]
    rest = decoder(
        input_ids=batch.tokens[:, :-1],
        position_ids=lengths[:, None] + columns,
        attention_mask=~padding,
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state  # [B, C - 1, H] predicts columns 1..C-1
    return torch.cat([first, rest], dim=1)


def _plain(decoder: nn.Module, batch: Batch) -> Tensor:
    lengths = batch.prompt_lengths[batch.group][:, None]  # [B, 1]
    columns = torch.arange(batch.tokens.shape[1], device=lengths.device)
    whole = torch.cat([batch.prompt_tokens[batch.group], torch.zeros_like(batch.tokens)], dim=1)
    whole = whole.scatter(1, lengths + columns, batch.tokens)  # [B, P + C]: prompt, completion, no gap
    hidden = decoder(input_ids=whole, use_cache=False).last_hidden_state
    at = (lengths + columns - 1)[:, :, None].expand(-1, -1, hidden.shape[-1])
    return hidden.gather(1, at)


def _repeat(x: Any, group: Tensor) -> Tensor:
    """Rows x[group]; a regular layout (equal adjacent groups) expands, whose backward is a plain deterministic sum."""
    size, odd = divmod(len(group), len(x))
    if not odd and torch.equal(group, torch.arange(len(x), device=group.device).repeat_interleave(size)):
        return x[:, None].expand(-1, size, *x.shape[1:]).reshape(-1, *x.shape[1:])
    return x.index_select(0, group)
