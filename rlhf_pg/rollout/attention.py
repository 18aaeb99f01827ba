"""Masks by which the native engine tells a transformers model which columns each row may attend to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_pg.models.llama_family import MODEL_TYPES
from rlhf_pg.models.packed_attention import base_attention


def context_of(config: Any) -> int | None:
    """Return how many positions a row may have: the model's limit, and its sliding window, in which attention is full.

    None: the configuration names neither.
    """
    text = config.get_text_config()
    limits = [getattr(text, name, None) for name in ("max_position_embeddings", "sliding_window")]
    return min((limit for limit in limits if limit), default=None)


def embedding_weight(model: PreTrainedModel) -> Tensor:
    """Return the input embedding [V, H]: its dtype and device are the model's."""
    weight = model.get_input_embeddings().weight
    if not isinstance(weight, Tensor):
        raise ValueError(f"the input embedding of {type(model).__name__} has no weight tensor")
    return weight


class Attention:
    """Builds the mask arguments of a forward. Raises ValueError for a model they cannot describe."""

    def __init__(self, model: PreTrainedModel) -> None:
        config = model.config.get_text_config()
        name = type(model).__name__
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
        if model.config.is_encoder_decoder or kinds - {"full_attention", "sliding_attention"}:
            raise ValueError(
                f"the native engine needs a decoder with plain attention layers; {name} has {sorted(kinds)}"
            )
        if rope in ("dynamic", "longrope"):
            raise ValueError(f"{name} has {rope} rotary positions, which make a row depend on the rows beside it")
        self.kind = base_attention(config)
        if self.kind not in ("sdpa", "eager", "flash_attention_2"):
            raise ValueError(f"the native engine needs sdpa, eager or flash_attention_2 attention, not {self.kind!r}")
        weight = embedding_weight(model)
        self.dtype = weight.dtype
        # Given a mask, transformers' sdpa copies keys and values to every query head; given the same numbers as a bias,
        # it leaves the grouping to torch, whose CPU kernel needs no copy. Of these models the forward hands it on.
        self.as_bias = self.kind == "sdpa" and weight.device.type == "cpu" and config.model_type in MODEL_TYPES

    def prefill(self, lengths: Tensor) -> dict[str, Tensor]:
        """Return the arguments with which to forward left-padded prompts of these lengths [n]."""
        width = int(lengths.max())
        column = torch.arange(width, device=lengths.device)
        start = (width - lengths)[:, None]  # [n, 1]
        position = (column - start).clamp_(min=0)  # [n, P]
        real = column >= start  # [n, P]
        if self.kind == "flash_attention_2":
            return {"position_ids": position, "attention_mask": real.long()}
        seen = (column <= column[:, None]) & real[:, None]  # [n, P, P]
        return {"position_ids": position, "attention_mask": self._additive(seen[:, None])}

    def bias(self, position: Tensor, longest: int) -> Tensor | None:
        """Return what to add to the scores of one token per row at position [n] over columns 0 .. longest - 1.

        [n, 1, 1, longest]; None on a CPU where no row hides any column.
        """
        if position.device.type == "cpu" and int(position.min()) == longest - 1:
            return None
        return self._additive((torch.arange(longest, device=position.device) <= position[:, None])[:, None, None])

    def decode(self, position: Tensor, longest: int) -> dict[str, Tensor]:
        """Return the mask argument for one token per row at position [n], over columns 0 .. longest - 1."""
        seen = torch.arange(longest, device=position.device) <= position[:, None]  # [n, longest]
        if self.kind == "flash_attention_2":
            return {"attention_mask": seen.long()}
        return {"position_bias" if self.as_bias else "attention_mask": self._additive(seen[:, None, None])}

    def _additive(self, seen: Tensor) -> Tensor:
        # Not -inf, also once autocast has made it bfloat16: a padding row, which sees nothing, must stay finite.
        low = max(torch.finfo(self.dtype).min, torch.finfo(torch.bfloat16).min)
        return torch.zeros(seen.shape, dtype=self.dtype, device=seen.device).masked_fill_(~seen, low)
