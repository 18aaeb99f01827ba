"""Masks by which the native engine tells a transformers model which columns each row may attend to."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_pg.models.llama_family import MODEL_TYPES
from rlhf_pg.models.packed_attention import base_attention

Masks = Tensor | dict[str, Tensor]  # by kind of layer, as in the configuration's `layer_types`


def embedding_weight(model: PreTrainedModel) -> Tensor:
    """Return the input embedding [V, H]: its dtype and device are the model's."""
    weight = model.get_input_embeddings().weight
    if not isinstance(weight, Tensor):
        raise ValueError(f"the input embedding of {type(model).__name__} has no weight tensor")
    return weight


class Attention:
    """Builds the mask arguments of a forward. Raises ValueError for a model they cannot describe.

    Masks are by columns, which are a row's positions, or differ from them by the same for the whole row.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        config = model.config.get_text_config()
        name = type(model).__name__
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        if model.config.is_encoder_decoder or kinds - {"full_attention", "sliding_attention"}:
            raise ValueError(f"{name} has layers of other kinds than attention to cached keys: {sorted(kinds)}")
        window = getattr(config, "sliding_window", None)
        by_layer = bool(getattr(config, "layer_types", None))
        self.window: int | None = window if "sliding_attention" in kinds or not by_layer else None
        self.by_kind = by_layer and self.window is not None  # the model takes a mask for each kind of its layers
        self.kind = base_attention(config)
        if self.kind not in ("sdpa", "eager", "flash_attention_2"):
            raise ValueError(f"the cache needs sdpa, eager or flash_attention_2 attention, not {self.kind!r}")
        weight = embedding_weight(model)
        self.dtype = weight.dtype
        # Given a mask, transformers' sdpa copies keys and values to every query head; given the same numbers as a bias,
        # it leaves the grouping to torch, whose CPU kernel needs no copy. Of these models the forward hands it on.
        plain = self.kind == "sdpa" and weight.device.type == "cpu" and self.window is None
        self.as_bias = plain and config.model_type in MODEL_TYPES

    def prefill(self, lengths: Tensor) -> dict[str, Masks]:
        """Return the arguments with which to forward left-padded prompts of these lengths [n]."""
        width = int(lengths.max())
        column = torch.arange(width, device=lengths.device)
        start = (width - lengths)[:, None]  # [n, 1]
        position = (column - start).clamp_(min=0)  # [n, P]
        real = column >= start  # [n, P]
        if self.kind == "flash_attention_2":
            return {"position_ids": position, "attention_mask": real.long()}
        seen = (column <= column[:, None]) & real[:, None]  # [n, P, P]
        return {"position_ids": position, "attention_mask": self._masks(seen[:, None], column[:, None] - column)}

    def bias(self, position: Tensor, longest: int) -> Masks | None:
        """Return what to add to the scores of one token per row at position [n] over columns 0 .. longest - 1.

        [n, 1, 1, longest], or that for each kind of layer; None on a CPU where no row hides any column.
        """
        windowed = self.window is not None and longest > self.window
        if not windowed and position.device.type == "cpu" and int(position.min()) == longest - 1:
            return None
        distance = position[:, None, None, None] - torch.arange(longest, device=position.device)  # [n, 1, 1, longest]
        return self._masks(distance >= 0, distance)

    def decode(self, position: Tensor, longest: int) -> dict[str, Masks]:
        """Return the mask argument for one token per row at position [n], over columns 0 .. longest - 1."""
        distance = position[:, None, None, None] - torch.arange(longest, device=position.device)  # [n, 1, 1, longest]
        if self.kind == "flash_attention_2":
            return {"attention_mask": (distance >= 0)[:, 0, 0].long()}
        return {"position_bias" if self.as_bias else "attention_mask": self._masks(distance >= 0, distance)}

    def _masks(self, seen: Tensor, distance: Tensor) -> Masks:
        """Return the mask of what is `seen` [n, 1, Q, K], within the window of layers that have one.

        distance, broadcast to the same shape: columns from a key to its query.
        """
        full = self._additive(seen)
        if self.window is None:
            return full
        sliding = self._additive(seen & (distance < self.window))
        return {"full_attention": full, "sliding_attention": sliding} if self.by_kind else sliding

    def _additive(self, seen: Tensor) -> Tensor:
        # Not -inf, also once autocast has made it bfloat16: a padding row, which sees nothing, must stay finite.
        low = max(torch.finfo(self.dtype).min, torch.finfo(torch.bfloat16).min)
        return torch.zeros(seen.shape, dtype=self.dtype, device=seen.device).masked_fill_(~seen, low)
