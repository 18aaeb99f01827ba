"""Have new weights arrived at an engine? It samples a few tokens, and the trainer's model scores them.

That takes all of sampling (prefill, cache, head, temperature), so that a stale copy of any weight shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rlhf_pg.models.exact import evaluation_mode
from rlhf_pg.types import Completion, Prompt, Sampling

LENGTHS = (5, 24)  # of the prompts, at most
NEW_TOKENS = 8


@dataclass(frozen=True)
class Closeness:
    """How near two log-probs of the same tokens must be.

    float32 rounding reaches some 1e-5. bfloat16 rounds a logit of 10 by 0.03, so that single tokens say nothing and the
    mean is compared.
    """

    statistic: str  # "max" or "mean"
    limit: float

    @classmethod
    def of(cls, dtype: str, float32: float = 1e-4) -> Closeness:
        """Return what to ask of a dtype's arithmetic; `float32`: the limit in that one."""
        return cls("max", float32) if dtype == "float32" else cls("mean", 3e-2)

    def gap(self, a: Tensor, b: Tensor, mask: Tensor) -> float:
        """Return the statistic of |a - b|, [B, C] or [n], where `mask`; NaN, which is near nothing, if there is one."""
        difference = (a.float() - b.float()).abs()[mask]
        return float(difference.amax() if self.statistic == "max" else difference.mean())

    def __str__(self) -> str:
        return f"{self.statistic} |difference| <= {self.limit:g}"


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
def check(
    model: nn.Module, prompts: Sequence[Prompt], groups: Sequence[Sequence[Completion]], dtype: str, version: int
) -> None:
    """Raise RuntimeError, naming the difference, unless the engine's log-probs of `groups` are those of the model."""
    device = next(model.parameters()).device
    arithmetic = torch.autocast(device.type, torch.bfloat16) if dtype == "bfloat16" else nullcontext()
    logp: list[Tensor] = []
    with evaluation_mode(model), arithmetic:
        for prompt, group in zip(prompts, groups, strict=True):
            for row in group:
                ids = torch.tensor([[*prompt.tokens, *row.tokens.tolist()]], device=device)
                logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt.tokens) - 1 : -1].float()  # [c, V]
                logp.append(logits.log_softmax(-1).cpu().gather(1, row.tokens[:, None])[:, 0])
    near = Closeness.of(dtype)
    trained, sampled = torch.cat(logp), torch.cat([row.logp for group in groups for row in group])
    gap = near.gap(trained, sampled, torch.ones_like(trained, dtype=torch.bool))
    if not gap <= near.limit:
        raise RuntimeError(
            f"the weights of version {version} did not reach the rollout engine: its log-probs differ from the "
            f"trainer's by {gap:.2g} ({near.statistic} over a few tokens; {near.limit:g} is allowed)"
        )
