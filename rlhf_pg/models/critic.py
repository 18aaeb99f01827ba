"""The critic: V(state before each completion token), by a value head on hidden states.

The states are the policy's own, or those of another decoder: a copy of the policy's, or a smaller model with the same
tokenizer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_pg.models.exact import share_if_exact
from rlhf_pg.models.fused import use_fused_layers
from rlhf_pg.models.hidden_states import forward_prompt, states_before, to_batch
from rlhf_pg.types import Batch, Prefix


class ValueHead(nn.Module):
    """V = w . h + b, in float32. w and b start at 0: until the head has learned, the advantage is the return.

    `backbone_gradient` scales the gradient that reaches the hidden states: 1 changes nothing, 0 trains the head only.
    """

    def __init__(self, width: int, backbone_gradient: float = 1.0):
        super().__init__()
        self.linear = nn.Linear(width, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.backbone_gradient = backbone_gradient

    def forward(self, hidden: Tensor) -> Tensor:
        """Value states: [M, H] -> [M] float32."""
        if self.backbone_gradient != 1:
            constant = hidden.detach()
            hidden = constant + self.backbone_gradient * (hidden - constant)  # the same value, the gradient scaled
        with torch.autocast(hidden.device.type, enabled=False):
            return self.linear(hidden.float()).squeeze(-1)


class Critic(nn.Module):
    """A value head on a decoder that is not the policy's."""

    def __init__(self, decoder: PreTrainedModel, share_prompts: bool = True):
        super().__init__()
        self.decoder = decoder
        self.share_prompts = share_prompts and share_if_exact(decoder)
        use_fused_layers(decoder)
        self.head = ValueHead(decoder.config.get_text_config().hidden_size)

    def forward(self, batch: Batch, *, prompt_only: bool = False) -> Tensor | Prefix:
        """Return V [B, C] float32 of the state before each sampled token, 0 where `batch.mask` is False.

        With `prompt_only`, forward only the batch's single prompt, and return it as a prefix for its rows.
        """
        if prompt_only:
            return forward_prompt(self.decoder, batch)
        hidden, index = states_before(self.decoder, batch, self.share_prompts)
        return to_batch(self.head(hidden), index, batch.mask)
