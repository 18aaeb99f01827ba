"""The work of one rollout step: the operations and bytes it cannot do without, by letters of `plan_memory.Share`.

Operations are multiplications and additions, two a weight and position. Each prompt is forwarded once per group where
prompts are shared, the last token of a completion not at all, the head at sampled tokens only, attention is causal.

    forward 1   backward 2 (1 of frozen weights under an adapter)   recomputed activations 1
    reference 1   old log-probs and values 1 where needed

Decoding reads all weights once per step of all rows, and each row's keys and values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from rlhf_pg.estimate.memory import FLOAT32
from rlhf_pg.estimate.model_size import Size, cache_per_token
from rlhf_pg.estimate.share import Share

MEASURES = 2  # of the line search, once and again halved


@dataclass(frozen=True)
class Work:
    """Of one process in one rollout step."""

    rollout_flops: float
    rollout_bytes: float
    decode_steps: int  # one token of every row in use
    update_flops: float  # passes without gradient, the policy's and the critic's optimizer steps
    passes: float  # forwards and backwards of whole weights: what ZeRO-3 gathers weights for
    tokens: int  # sampled, at most


@dataclass(frozen=True)
class Pass:
    """Operations of one forward of the whole step."""

    layers: float
    adapters: float
    attention: float
    head: float

    def forward(self, head: bool = True) -> float:
        return self.layers + self.adapters + self.attention + self.head * head

    def backward(self, frozen: bool, head: bool = True) -> float:
        """Gradients of inputs and of weights; frozen weights need none."""
        once = 1 if frozen else 2
        return once * (self.layers + self.head * head) + 2 * (self.adapters + self.attention)


def work(share: Share, size: Size, critic: Size | None = None) -> Work:
    """A step of one process, all completions as long as can be."""
    recipe, rows = share.recipe, share.rows
    one = forward_pass(share, size)
    lora, again = recipe.model.lora is not None, recipe.model.gradient_checkpointing
    learn = one.forward() + one.backward(lora) + (one.forward(head=False) if again else 0)
    free = recipe.passes.of_policy
    algorithm = recipe.algorithm
    if algorithm.update == "trust_region":
        flops, learned = _trust_region(share, one, learn)
    else:
        flops, learned = recipe.update.epochs * learn, recipe.update.epochs * (3 if again else 2)
    flops += free * one.forward()
    if critic:
        own = forward_pass(share, critic)
        steps = own.forward(False) + own.backward(lora, False) + (own.forward(False) if again else 0)
        flops += own.forward(False) + recipe.critic.epochs * steps
    slots = min(recipe.rollout.slots, rows)
    decode = math.ceil(rows / max(1, slots)) * share.completion
    seen = share.prompt + share.completion / 2
    per_row = 2 * (size.matrices + size.adapters + size.head) + 4 * size.layers * size.queries * seen
    prefill = _forward(size, share.prompts * share.prompt, share.prompts * share.prompt**2 / 2, share.prompts)
    return Work(
        rollout_flops=rows * share.completion * per_row + prefill.forward(),
        rollout_bytes=decode * (_read(share, size) + slots * seen * cache_per_token(size) * _width(share)),
        decode_steps=decode,
        update_flops=flops,
        passes=learned + free,
        tokens=rows * share.completion,
    )


def forward_pass(share: Share, size: Size) -> Pass:
    """One forward of all of a step's prompts and completions."""
    prompts, rows, prompt, completion = share.prompts, share.rows, share.prompt, share.completion
    inside = completion - 1
    seen = rows * (inside * prompt + inside * (inside + 1) / 2)
    if share.recipe.update.share_prompts:
        positions = prompts * prompt + rows * inside
        seen += prompts * prompt * (prompt + 1) / 2
    else:
        positions = rows * (prompt + completion)
        seen += rows * (prompt * (prompt + 1) / 2 + prompt + completion)
    return _forward(size, positions, seen, rows * completion)


def _forward(size: Size, positions: float, seen: float, scored: float) -> Pass:
    return Pass(
        layers=2 * size.matrices * positions,
        adapters=2 * size.adapters * positions,
        attention=4 * size.layers * size.queries * seen,
        head=2 * size.head * scored,
    )


def _trust_region(share: Share, one: Pass, learn: float) -> tuple[float, float]:
    """(operations, passes): the gradient, what is remembered, two gradients a Fisher product, the line search."""
    options: Any = share.recipe.algorithm.options
    products = 2 * (options.cg_iterations + 1) * options.fisher_fraction
    kl = learn + one.head  # the old distributions are formed too
    searched = MEASURES * (one.forward() + one.head)
    return learn + one.forward() + products * kl + searched, 2 + 1 + 2 * products + MEASURES


def _width(share: Share) -> int:
    return 2 if share.recipe.model.dtype == "bfloat16" else FLOAT32


def _read(share: Share, size: Size) -> float:
    """Bytes of weights a decode step reads: those of autocast's copies, which frozen weights have none of."""
    numbers = size.matrices + size.adapters + size.head
    if share.recipe.model.dtype == "bfloat16":
        return numbers * (FLOAT32 + 2 + 2 if share.recipe.model.lora else 2)
    return numbers * FLOAT32
