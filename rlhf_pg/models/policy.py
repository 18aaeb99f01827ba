"""The policy: a batch of completions in, the log-prob and entropy of every sampled token out.

How prompts are packed is decided in models/hidden_states.py, so that DDP, ZeRO and LoRA see a single forward and the
algorithms see only [B, C] tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_pg.functional.logprobs import distribution_kl, token_logprobs
from rlhf_pg.models.critic import ValueHead
from rlhf_pg.models.exact import HeadInput, decoder_of, head_of, share_if_exact
from rlhf_pg.models.fused import use_fused_layers
from rlhf_pg.models.hidden_states import forward_prompt, states_before, to_batch
from rlhf_pg.types import Batch, Prefix


@dataclass(frozen=True)
class Snapshot:
    """What a policy's distributions at one moment are computed from: far smaller than probabilities [B, C, V]."""

    hidden: Tensor  # [B, C, H]
    weight: Tensor  # [V, H]
    bias: Tensor | None  # [V]


class Policy(nn.Module):
    """A causal language model as a policy over completion tokens at a fixed sampling temperature.

    `value_head`: a critic that shares the model, or None. ValueError for a temperature that is not positive, or an
    adapter on the output head, which would be ignored: log-probs are computed from the head's weight.
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
        self.head = head_of(model)
        self.share_prompts = share_prompts and self.head.direct and share_if_exact(decoder_of(model))
        use_fused_layers(model)
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

        logp[b, t] = log pi(tokens[b, t] | prompt, tokens[b, <t]); entropy is of the distribution the token is from.
        `score=False` leaves both out. With `old`, a snapshot of the same rows, follows KL(old || current) of the whole
        distribution at each state [B, C]; with `value`, the value head's V(state) [B, C]. ValueError without a head.
        With `prompt_only`, forward only the batch's single prompt, and return it as a prefix for its rows.
        """
        if prompt_only:
            return forward_prompt(decoder_of(self.model), batch)
        hidden, index = states_before(self._decoder, batch, self.share_prompts)
        head = self._head
        state = hidden.to(head.weight.dtype)  # [M, H]
        outputs: list[Tensor] = []  # [M] each
        if score:
            outputs += self._score(state, batch.tokens.reshape(-1).index_select(0, index))
        if old is not None:
            state_old = old.hidden[:, : batch.mask.shape[1]].reshape(batch.mask.numel(), -1).index_select(0, index)
            pair = (state, head.weight, state_old, old.weight)
            outputs.append(distribution_kl(*pair, bias=head.bias, bias_old=old.bias, **self._scaling))
        if value:
            if self.value_head is None:
                raise ValueError("this policy has no value head: set critic.backbone=policy")
            outputs.append(self.value_head(hidden))
        return tuple(to_batch(x, index, batch.mask) for x in outputs)

    @torch.no_grad()
    def states_and_scores(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return (states before each sampled token [B, C, H] in the head's dtype, logp, entropy), without gradient."""
        hidden, index = states_before(self._decoder, batch, self.share_prompts)
        state = hidden.to(self._head.weight.dtype)
        logp, entropy = self._score(state, batch.tokens.reshape(-1).index_select(0, index))
        mask = batch.mask
        return to_batch(state, index, mask), to_batch(logp, index, mask), to_batch(entropy, index, mask)

    def frozen_head(self) -> tuple[Tensor, Tensor | None]:
        """Return the head's present weight [V, H] and bias [V]: copies if they are trained, else the tensors."""
        head = self._head
        return tuple(x.detach().clone() if x is not None and x.requires_grad else x for x in (head.weight, head.bias))  # pyright: ignore[reportReturnType]

    @property
    def _head(self) -> nn.Linear:
        return self.model.get_output_embeddings()  # pyright: ignore[reportReturnType]

    @property
    def _decoder(self) -> Any:
        """Return what gives the states that the head is applied to."""
        return decoder_of(self.model) if self.head.direct else HeadInput(self.model)

    @property
    def _scaling(self) -> dict[str, Any]:
        """Return the arguments that say what happens to logits between the head and the softmax."""
        softcap = self.head.softcap and self.head.softcap / self.head.scale
        return {"temperature": self.temperature / self.head.scale, "softcap": softcap}

    def _score(self, state: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Score the tokens [M] sampled from states [M, H] -> (logp [M], entropy [M])."""
        return token_logprobs(state, self._head.weight, tokens, bias=self._head.bias, **self._scaling)
