"""Have new weights arrived at an engine? It samples a few tokens, and the trainer's model scores them.

That takes all of sampling (prefill, cache, head, temperature), so that a stale copy of any weight shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_pg.models.context import context_length
from rlhf_pg.models.exact import evaluation_mode
from rlhf_pg.models.packed_attention import base_attention
from rlhf_pg.types import Completion, Prompt, Sampling

LENGTHS = (5, 24)  # of the prompts, at most
NEW_TOKENS = 8
BFLOAT16_LIMIT = 3e-2  # of a mean difference
ROUNDINGS = 3  # as many times the error of one result two results may differ: 2 at worst, more over few tokens


@dataclass(frozen=True)
class Closeness:
    """How near two log-probs of the same tokens must be.

    float32 rounding reaches some 1e-5. bfloat16 rounds a logit of 10 by 0.03, so that single tokens say nothing and the
    mean is compared, with the model's own rounding where that is larger: a deep pretrained model's reaches 0.05.
    """

    statistic: str  # "max" or "mean"
    limit: float

    @classmethod
    def of(cls, dtype: str, float32: float = 1e-4, rounding: float = 0.0) -> Closeness:
        """Return what to ask of a dtype's arithmetic; `float32`: the limit in that one; `rounding`: see `rounding`."""
        return cls("max", float32) if dtype == "float32" else cls("mean", max(BFLOAT16_LIMIT, ROUNDINGS * rounding))

    def gap(self, a: Tensor, b: Tensor, mask: Tensor) -> float:
        """Return the statistic of |a - b|, [B, C] or [n], where `mask`; NaN, which is near nothing, if there is one."""
        difference = (a.float() - b.float()).abs()[mask]
        return float(difference.amax() if self.statistic == "max" else difference.mean())

    def __str__(self) -> str:
        return f"{self.statistic} |difference| <= {self.limit:.2g}"


def prompts(vocabulary: int, context: int) -> list[Prompt]:
    """Return prompts of tokens that are the same every time."""
    generator = torch.Generator().manual_seed(20)
    lengths = [max(1, min(length, context - NEW_TOKENS)) for length in LENGTHS]
    tokens = [torch.randint(vocabulary, (length,), generator=generator).tolist() for length in lengths]
    return [Prompt(f"proof/{place}", "", tuple(ids)) for place, ids in enumerate(tokens)]


def sampling(context: int) -> Sampling:
    """Return how to sample from `prompts`."""
    return Sampling(samples=1, max_new_tokens=min(NEW_TOKENS, context - 1))


@torch.no_grad()
def rounding(model: PreTrainedModel, dtype: str) -> float:
    """Return the mean error of a log-prob in `dtype` instead of float32: of the tokens that the model itself gives.

    Measured on `prompts`, at every position over the whole vocabulary, each token weighted by its probability. 0 for
    float32, and for flash attention, which has no float32.
    """
    if dtype == "float32" or base_attention(model.config).startswith("flash"):
        return 0.0
    device, errors = next(model.parameters()).device, []
    with evaluation_mode(model):
        for prompt in prompts(model.config.get_text_config().vocab_size, context_length(model.config)):
            ids = torch.tensor([prompt.tokens], device=device)
            exact, rounded = (
                _logits(model, ids, autocast).log_softmax(-1)
                for autocast in (nullcontext(), _arithmetic(dtype, device))
            )
            errors.append((exact.exp() * (rounded - exact).abs()).sum(-1))  # [positions]
    return float(torch.cat(errors).mean())


def _arithmetic(dtype: str, device: torch.device) -> AbstractContextManager[object]:
    return torch.autocast(device.type, torch.bfloat16) if dtype == "bfloat16" else nullcontext()


def _logits(model: nn.Module, ids: Tensor, autocast: AbstractContextManager[object]) -> Tensor:
    """Forward tokens [1, n] -> logits [n, V] in float32."""
    with autocast:
        return model(input_ids=ids, use_cache=False).logits[0].float()


@torch.no_grad()
def check(
    model: PreTrainedModel, prompts: Sequence[Prompt], groups: Sequence[Sequence[Completion]], dtype: str, version: int
) -> None:
    """Raise RuntimeError, naming the difference, unless the engine's log-probs of `groups` are those of the model."""
    device = next(model.parameters()).device
    logp: list[Tensor] = []
    with evaluation_mode(model):
        for prompt, group in zip(prompts, groups, strict=True):
            for row in group:
                ids = torch.tensor([[*prompt.tokens, *row.tokens.tolist()]], device=device)
                logits = _logits(model, ids, _arithmetic(dtype, device))[len(prompt.tokens) - 1 : -1]  # [c, V]
                logp.append(logits.log_softmax(-1).cpu().gather(1, row.tokens[:, None])[:, 0])
    near = Closeness.of(dtype)
    trained, sampled = torch.cat(logp), torch.cat([row.logp for group in groups for row in group])
    gap = near.gap(trained, sampled, torch.ones_like(trained, dtype=torch.bool))
    if not gap <= near.limit:
        near = Closeness.of(dtype, rounding=rounding(model, dtype))  # measured where it matters only: it takes a while
    if not gap <= near.limit:
        raise RuntimeError(
            f"the weights of version {version} did not reach the rollout engine: its log-probs differ from the "
            f"trainer's by {gap:.2g} ({near.statistic} over a few tokens; {near.limit:.2g} is allowed)"
        )
