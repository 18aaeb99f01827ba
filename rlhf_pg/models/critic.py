"""The critic: V(state before each completion token). A value head on the policy's own hidden states, or on another
decoder's: a copy of the policy's, or a smaller model with the same tokenizer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_pg.models.fused import lighten
from rlhf_pg.models.hidden_states import prompt_before_rows, spread, states_before
from rlhf_pg.models.packed_attention import can_attend, teach
from rlhf_pg.models.packing import Prefix
from rlhf_pg.types import Batch


class ValueHead(nn.Module):
    """V = w . h + b, in float32 and starting at 0: until it has learned, the advantage is the return.

    `backbone_gradient` scales the gradient that reaches the hidden states: 0 trains the head alone, 1 is plain.
    """

    def __init__(self, width: int, backbone_gradient: float = 1.0):
        super().__init__()
        self.linear = nn.Linear(width, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.backbone_gradient = backbone_gradient

    def forward(self, hidden: Tensor) -> Tensor:
        """[M, H] -> [M]."""
        if self.backbone_gradient != 1:
            held = hidden.detach()
            hidden = held + self.backbone_gradient * (hidden - held)  # the same value, the gradient scaled
        with torch.autocast(hidden.device.type, enabled=False):
            return self.linear(hidden.float()).squeeze(-1)


class Critic(nn.Module):
    """A decoder of its own under a value head."""

    def __init__(self, decoder: PreTrainedModel, share_prompts: bool = True):
        super().__init__()
        self.decoder = decoder
        self.share_prompts = share_prompts and can_attend(decoder)
        if self.share_prompts:
            teach(decoder)
        lighten(decoder)
        self.head = ValueHead(decoder.config.get_text_config().hidden_size)

    def forward(self, batch: Batch, *, prompt_only: bool = False) -> Tensor | Prefix:
        """V [B, C] float32 of the state before each sampled token, 0 where `batch.mask` is False.

        `prompt_only`: the batch's one prompt, for its rows to be forwarded in parts (`Batch.prefix`).
        """
        if prompt_only:
            return prompt_before_rows(self.decoder, batch)
        hidden, scored = states_before(self.decoder, batch, self.share_prompts)
        return spread(self.head(hidden), scored, batch.mask)
