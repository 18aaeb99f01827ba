"""The proof that weights have arrived: an engine samples a few tokens, and the trainer's model scores them.

Sampling goes the whole way (prefill, cache, head, temperature), so that a stale copy of any weight shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from rlhf_pg.rollout.native import evaluation_mode
from rlhf_pg.types import Completion, Prompt, Sampling

LENGTHS = (5, 24)  # of the prompts, at most
NEW_TOKENS = 8


@dataclass(frozen=True)
class Closeness:
    """How near log-probs must be: float32 in the worst token; bfloat16, where one is off by hundredths, in the mean."""

    statistic: str
    limit: float

    @classmethod
    def of(cls, dtype: str) -> Closeness:
        return cls("max", 1e-4) if dtype == "float32" else cls("mean", 3e-2)


def prompts(vocabulary: int, context: int) -> list[Prompt]:
    """The same tokens every time."""
    generator = torch.Generator().manual_seed(20)
    lengths = [max(1, min(length, context - NEW_TOKENS)) for length in LENGTHS]
    drawn = [torch.randint(vocabulary, (length,), generator=generator).tolist() for length in lengths]
    return [Prompt(f"proof/{place}", "", tuple(tokens)) for place, tokens in enumerate(drawn)]


def sampling(context: int) -> Sampling:
    return Sampling(samples=1, max_new_tokens=min(NEW_TOKENS, context - 1))


@torch.no_grad()
def gap(model: nn.Module, asked: Sequence[Prompt], made: Sequence[Sequence[Completion]], dtype: str) -> float:
    """How far the engine's log-probs are from the model's, by the statistic of `dtype`; NaN where there is one."""
    differences = []
    device = next(model.parameters()).device
    kind = torch.autocast(device.type, torch.bfloat16) if dtype == "bfloat16" else nullcontext()
    with evaluation_mode(model), kind:
        for prompt, group in zip(asked, made, strict=True):
            for row in group:
                ids = torch.tensor([[*prompt.tokens, *row.tokens.tolist()]], device=device)
                logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt.tokens) - 1 : -1].float()  # [c, V]
                own = logits.log_softmax(-1).cpu().gather(1, row.tokens[:, None])[:, 0]
                differences.append((own - row.logp).abs())
    together = torch.cat(differences)
    return float(together.amax() if Closeness.of(dtype).statistic == "max" else together.mean())


def check(found: float, dtype: str, version: int) -> None:
    """Raise RuntimeError, naming the difference, unless the engine's log-probs are the trainer's."""
    near = Closeness.of(dtype)
    if not found <= near.limit:
        raise RuntimeError(
            f"the weights of version {version} did not reach the rollout engine: its log-probs differ from the "
            f"trainer's by {found:.2g} ({near.statistic} over the tokens of a proof; {near.limit:g} is allowed)"
        )
