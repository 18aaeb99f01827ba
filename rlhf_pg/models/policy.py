"""The one wrapped policy: a batch of completions in, the log-prob and entropy of every sampled token out.

How prompts are shared, packed or chunked is decided in here, so that DDP, ZeRO and LoRA see a single forward and the
algorithms see only [B, C] tensors. Two exact ways to the same numbers:

- shared: each prompt is forwarded once with a key/value cache that keeps its gradient; the cache is repeated over the
  prompt's rows and only completion tokens are forwarded. Work per group: P + G * C positions.
- plain: each row is forwarded whole, prompt and completion. Work per group: G * (P + C) positions. Any architecture.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from rlhf_pg.functional.logprobs import token_logprobs
from rlhf_pg.types import Batch


class Policy(nn.Module):
    """A causal language model as a policy over completion tokens at a fixed sampling temperature."""

    def __init__(self, model: PreTrainedModel, temperature: float = 1.0, share_prompts: bool = True):
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"a policy needs a temperature above 0, not {temperature}")
        self.model = model
        self.temperature = temperature
        self.share_prompts = share_prompts and can_share_prompts(model)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return (logp, entropy), each [B, C] float32, 0 where `batch.mask` is False.

        logp[b, t] = log pi(tokens[b, t] | prompt, tokens[b, <t]); entropy is of the distribution it was drawn from.
        """
        hidden = self._shared(batch) if self.share_prompts else self._plain(batch)  # [B, C, H]
        rows, width = batch.tokens.shape
        scored = batch.mask.reshape(-1).nonzero().squeeze(1)  # [M]: the head is applied to these positions only
        head: nn.Linear = self.model.get_output_embeddings()  # pyright: ignore[reportAssignmentType]
        logp, entropy = token_logprobs(
            hidden.reshape(rows * width, -1).index_select(0, scored).to(head.weight.dtype),
            head.weight,
            batch.tokens.reshape(-1).index_select(0, scored),
            temperature=self.temperature,
            bias=head.bias,
            softcap=getattr(self.model.config.get_text_config(), "final_logit_softcapping", None),
        )
        return tuple(x.new_zeros(rows * width).index_copy(0, scored, x).view(rows, width) for x in (logp, entropy))  # pyright: ignore[reportReturnType]

    def _shared(self, batch: Batch) -> Tensor:
        """Hidden states [B, C, H] from which each completion token is predicted, prompts forwarded once."""
        decoder = self.model.get_decoder()
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

    def _plain(self, batch: Batch) -> Tensor:
        """The same hidden states from one forward over whole rows."""
        lengths = batch.prompt_lengths[batch.group][:, None]  # [B, 1]
        columns = torch.arange(batch.tokens.shape[1], device=lengths.device)
        whole = torch.cat([batch.prompt_tokens[batch.group], torch.zeros_like(batch.tokens)], dim=1)
        whole = whole.scatter(1, lengths + columns, batch.tokens)  # [B, P + C]: prompt, completion, no gap
        hidden = self.model.get_decoder()(input_ids=whole, use_cache=False).last_hidden_state
        at = (lengths + columns - 1)[:, :, None].expand(-1, -1, hidden.shape[-1])
        return hidden.gather(1, at)


def can_share_prompts(model: PreTrainedModel) -> bool:
    """Whether every layer attends to everything before it, which a repeated prompt cache relies on."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ["full_attention"]
    return all(kind == "full_attention" for kind in kinds) and not getattr(config, "sliding_window", None)


def _repeat(x: Any, group: Tensor) -> Tensor:
    """Rows x[group]; a regular layout (equal adjacent groups) expands, whose backward is a plain deterministic sum."""
    size, odd = divmod(len(group), len(x))
    if not odd and torch.equal(group, torch.arange(len(x), device=group.device).repeat_interleave(size)):
        return x[:, None].expand(-1, size, *x.shape[1:]).reshape(-1, *x.shape[1:])
    return x.index_select(0, group)
