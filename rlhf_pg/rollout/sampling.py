"""Drawing tokens: one random stream per sample, and exact inverse-CDF sampling.

A sample's randomness is a function of (seed, step, prompt id, sample index) alone, so neither the rows beside it, nor
its slot, nor the order of the prompts can change it, and torch's global generators are never read or advanced.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from rlhf_pg.types import Sampling

BYTES_PER_LOGIT = 20  # that `choose` needs beside the logits: log-prob float32, then two int64 (`_invert`)
FIXED_POINT = 2.0**60  # a float32 probability times this is exact, and a vocabulary of them sums to less than 2**63


def uniforms(sampling: Sampling, prompt_id: str, index: int) -> Tensor:
    """Return the stream of one sample: float64 [max_new_tokens] in [0, 1), number t for completion token t.

    Philox 4x64 (Salmon et al. 2011) keyed by a hash, so a longer max_new_tokens only appends numbers.
    """
    name = f"{sampling.seed}/{sampling.step}/{index}/{prompt_id}".encode()
    key = int.from_bytes(hashlib.blake2b(name, digest_size=16).digest(), "little")
    return torch.from_numpy(np.random.Generator(np.random.Philox(key=key)).random(sampling.max_new_tokens))


def choose(logits: Tensor, uniform: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Draw one token per row.

    logits [n, V] of any float dtype; uniform [n] float64 in [0, 1). Returns (tokens int64 [n], logp float32 [n]).
    logp is log_softmax(logits / temperature) of the token, before top-p and top-k; at temperature 0 the token is the
    most likely one and logp is at temperature 1. Rows with a non-finite logit get some token and a NaN logp.
    """
    if sampling.temperature == 0:
        logp = torch.log_softmax(logits.float(), dim=-1)  # [n, V]
        tokens = logp.argmax(dim=-1)  # [n]
    else:
        scaled = logits.float() if sampling.temperature == 1 else logits.float() / sampling.temperature
        logp = torch.log_softmax(scaled, dim=-1)
        tokens = _invert(_truncate(logp, sampling), uniform)
    return tokens, logp.gather(-1, tokens[:, None]).squeeze(-1)


def _invert(logp: Tensor, uniform: Tensor) -> Tensor:
    """Return the first token whose cumulative weight exceeds uniform * total.

    In integers, so exact and monotone on any device: a token of weight 0 is never drawn and no tail of the vocabulary
    is lost to rounding.
    """
    cumulative = (logp.exp() * FIXED_POINT).to(torch.int64).cumsum(dim=-1)  # [n, V]
    total = cumulative[:, -1:]  # [n, 1]
    target = torch.minimum((uniform[:, None] * total).to(torch.int64), total - 1)  # [n, 1]
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1).clamp_(max=logp.shape[-1] - 1)


def _truncate(logp: Tensor, sampling: Sampling) -> Tensor:
    """Set logp [n, V] to -inf outside the top k tokens, then outside the smallest set whose share of the rest reaches
    top_p."""
    if 0 < sampling.top_k < logp.shape[-1]:
        least = logp.topk(sampling.top_k, dim=-1).values[:, -1:]  # [n, 1]
        logp = logp.masked_fill(logp < least, -torch.inf)
    if sampling.top_p < 1:
        ordered, place = logp.sort(dim=-1, descending=True)
        share = ordered.softmax(dim=-1)
        ordered = ordered.masked_fill(share.cumsum(dim=-1) - share >= sampling.top_p, -torch.inf)
        logp = logp.scatter(-1, place, ordered)
    return logp
