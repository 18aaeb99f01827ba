"""The one wrapped policy: a batch of completions in, the log-prob and entropy of every sampled token out.

How prompts are shared, packed or chunked is decided in models/hidden_states.py, so that DDP, ZeRO and LoRA see a single
forward and the algorithms see only [B, C] tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_pg.functional.logprobs import distribution_kl, token_logprobs
from rlhf_pg.models.critic import ValueHead
from rlhf_pg.models.fused import lighten
from rlhf_pg.models.hidden_states import prompt_before_rows, spread, states_before
from rlhf_pg.models.packed_attention import can_attend, teach
from rlhf_pg.models.packing import Prefix
from rlhf_pg.types import Batch


@dataclass(frozen=True)
class Snapshot:
    """What a policy's distributions were: enough to form them again, far smaller than [B, C, V] probabilities."""

    hidden: Tensor  # [B, C, H]
    weight: Tensor  # [V, H]
    bias: Tensor | None  # [V]


class Policy(nn.Module):
    """A causal language model as a policy over completion tokens at a fixed sampling temperature.

    `value_head`: a critic that shares the model, or None. ValueError for a temperature that is not positive, or a head
    that is no plain linear layer (an adapter on it would be passed by).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        temperature: float = 1.0,
        share_prompts: bool = True,
        value_head: ValueHead | None = None,
    ):
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"a policy needs a temperature above 0, not {temperature}")
        if hasattr(model.get_output_embeddings(), "lora_A"):
            raise ValueError("model.lora.targets names the output head: its log-probs are computed from the plain head")
        self.model = model
        self.temperature = temperature
        self.share_prompts = share_prompts and can_attend(model.get_decoder())
        if self.share_prompts:
            teach(model)
        lighten(model)
        self.value_head = value_head

    def forward(
        self,
        batch: Batch,
        *,
        score: bool = True,
        old: Snapshot | None = None,
        value: bool = False,
        prompt_only: bool = False,
    ) -> tuple[Tensor, ...] | Prefix:
        """Return (logp, entropy), each [B, C] float32, 0 where `batch.mask` is False.

        logp[b, t] = log pi(tokens[b, t] | prompt, tokens[b, <t]); entropy is of the distribution it was drawn from.
        With `old`, a snapshot of the same rows, KL(old || now) of every state's whole distribution [B, C] follows; with
        `value`, the value head's V(state) [B, C] follows. `score` False leaves logp and entropy out.
        `prompt_only`: nothing of this, but the batch's one prompt, for its rows to be forwarded in parts
        (`Batch.prefix`).
        """
        if prompt_only:
            return prompt_before_rows(self.model.get_decoder(), batch)
        hidden, scored = states_before(self.model.get_decoder(), batch, self.share_prompts)
        head = self._head
        state = hidden.to(head.weight.dtype)  # [M, H]
        made: list[Tensor] = []
        if score:
            made += self._score(state, batch.tokens.reshape(-1).index_select(0, scored))
        if old is not None:
            before = old.hidden[:, : batch.mask.shape[1]].reshape(batch.mask.numel(), -1).index_select(0, scored)
            now = (state, head.weight, before, old.weight)
            made.append(distribution_kl(*now, bias=head.bias, bias_old=old.bias, **self._scaling))
        if value:
            if self.value_head is None:
                raise ValueError("this policy has no value head: set critic.backbone=policy")
            made.append(self.value_head(hidden))
        return tuple(spread(x, scored, batch.mask) for x in made)

    @torch.no_grad()
    def remember(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """(states before each completion token [B, C, H], in the head's dtype; logp; entropy), all without gradient."""
        hidden, scored = states_before(self.model.get_decoder(), batch, self.share_prompts)
        state = hidden.to(self._head.weight.dtype)
        made = self._score(state, batch.tokens.reshape(-1).index_select(0, scored))
        logp, entropy = (spread(x, scored, batch.mask) for x in made)
        return spread(state, scored, batch.mask), logp, entropy

    def frozen_head(self) -> tuple[Tensor, Tensor | None]:
        """The head's weight [V, H] and bias as they are now: copies if they are trained, else the tensors."""
        head = self._head
        return tuple(x.detach().clone() if x is not None and x.requires_grad else x for x in (head.weight, head.bias))  # pyright: ignore[reportReturnType]

    @property
    def _head(self) -> nn.Linear:
        return self.model.get_output_embeddings()  # pyright: ignore[reportReturnType]

    @property
    def _scaling(self) -> dict[str, Any]:
        """What happens to logits between the head and the softmax."""
        softcap = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)
        return {"temperature": self.temperature, "softcap": softcap}

    def _score(self, state: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """States [M, H] and the tokens sampled there [M] -> (logp [M], entropy [M])."""
        return token_logprobs(state, self._head.weight, tokens, bias=self._head.bias, **self._scaling)
