"""The critic: V(state before each completion token). A value head on the policy's own hidden states, or on another
decoder's: a copy of the policy's, or a smaller model with the same tokenizer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlhf_pg.models.hidden import at_sampled, can_share_prompts, hidden_states, spread
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

    def __init__(self, decoder: nn.Module, share_prompts: bool = True):
        super().__init__()
        config = decoder.config
        self.decoder = decoder
        self.share_prompts = share_prompts and can_share_prompts(config)  # pyright: ignore[reportArgumentType]
        self.head = ValueHead(config.get_text_config().hidden_size)  # pyright: ignore

    def forward(self, batch: Batch) -> Tensor:
        """V [B, C] float32 of the state before each sampled token, 0 where `batch.mask` is False."""
        hidden, scored = at_sampled(hidden_states(self.decoder, batch, self.share_prompts), batch.mask)
        return spread(self.head(hidden), scored, batch.mask)
