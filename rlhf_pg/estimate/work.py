"""The work of one rollout step: the operations and bytes it cannot do without, by letters of `share.Share`.

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

from rlhf_pg.estimate.model_size import FLOAT32, ModelSize, arithmetic_bytes
from rlhf_pg.estimate.share import Share

LINE_SEARCH_TRIES = 2  # the full step, then half of it


@dataclass(frozen=True)
class Work:
    """The work of one process in one rollout step."""

    rollout_flops: float
    rollout_bytes: float
    decode_steps: int  # one token of every row in use
    update_flops: float  # passes without gradient, the policy's and the critic's optimizer steps
    passes: float  # forwards and backwards of all weights: what ZeRO-3 gathers weights for
    tokens: int  # sampled, at most


@dataclass(frozen=True)
class Forward:
    """The operations of one forward."""

    layers: float
    adapters: float
    attention: float
    head: float

    def flops(self, head: bool = True) -> float:
        return self.layers + self.adapters + self.attention + self.head * head

    def backward_flops(self, frozen: bool, head: bool = True) -> float:
        """Return the operations of gradients of inputs and of weights; frozen weights need none."""
        gradients = 1 if frozen else 2
        return gradients * (self.layers + self.head * head) + 2 * (self.adapters + self.attention)

    def learning_flops(self, share: Share, head: bool = True) -> float:
        """Return the operations of this forward, its backward, and what is recomputed in that."""
        model = share.recipe.model
        recomputed = self.flops(head=False) if model.gradient_checkpointing else 0
        return self.flops(head) + self.backward_flops(model.lora is not None, head) + recomputed


def step_work(share: Share, size: ModelSize, critic: ModelSize | None = None) -> Work:
    """Return the work of a process, all completions as long as can be."""
    recipe, rows, completion = share.recipe, share.rows, share.completion_length
    forward = _of_rollouts(share, size)
    if recipe.algorithm.update == "trust_region":
        flops, passes = _trust_region(share, forward)
    else:
        flops = recipe.update.epochs * forward.learning_flops(share)
        passes = recipe.update.epochs * (3 if recipe.model.gradient_checkpointing else 2)
    flops += recipe.passes.of_policy * forward.flops()
    if critic:
        values = _of_rollouts(share, critic)
        flops += values.flops(head=False) + recipe.critic.epochs * values.learning_flops(share, head=False)
    slots = min(recipe.rollout.slots, rows)
    decode_steps = math.ceil(rows / max(1, slots)) * completion
    context = share.prompt_length + completion / 2  # of a decoded token, on average
    token_flops = 2 * (size.linear + size.adapters + size.head) + 4 * size.layers * size.query_width * context
    prompt_pairs = share.prompts * share.prompt_length**2 / 2
    prefill = _forward(size, share.prompts * share.prompt_length, prompt_pairs, share.prompts)
    cache_bytes = slots * context * size.cache_per_token * arithmetic_bytes(recipe.model)
    return Work(
        rollout_flops=rows * completion * token_flops + prefill.flops(),
        rollout_bytes=decode_steps * (_weight_bytes(share, size) + cache_bytes),
        decode_steps=decode_steps,
        update_flops=flops,
        passes=passes + recipe.passes.of_policy,
        tokens=rows * completion,
    )


def _of_rollouts(share: Share, size: ModelSize) -> Forward:
    """Return the forward of all of a step's prompts and completions."""
    prompts, rows, prompt, completion = share.prompts, share.rows, share.prompt_length, share.completion_length
    inner = completion - 1  # a completion's last token is not forwarded
    pairs = rows * (inner * prompt + inner * (inner + 1) / 2)
    if share.recipe.update.share_prompts:
        positions = prompts * prompt + rows * inner
        pairs += prompts * prompt * (prompt + 1) / 2
    else:
        positions = rows * (prompt + completion)
        pairs += rows * (prompt * (prompt + 1) / 2 + prompt + completion)
    return _forward(size, positions, pairs, rows * completion)


def _forward(size: ModelSize, positions: float, pairs: float, scored: float) -> Forward:
    """Return a forward of `positions` positions, with `pairs` of query and key, and logits of `scored` tokens."""
    return Forward(
        layers=2 * size.linear * positions,
        adapters=2 * size.adapters * positions,
        attention=4 * size.layers * size.query_width * pairs,
        head=2 * size.head * scored,
    )


def _trust_region(share: Share, forward: Forward) -> tuple[float, float]:
    """Return (operations, passes): the gradient, the old policy, two gradients a Fisher product, the line search."""
    learning = forward.learning_flops(share)
    options: Any = share.recipe.algorithm.options
    products = 2 * (options.cg_iterations + 1) * options.fisher_fraction
    kl_gradient = learning + forward.head  # the old distributions are formed too
    search = LINE_SEARCH_TRIES * (forward.flops() + forward.head)
    flops = learning + forward.flops() + products * kl_gradient + search
    return flops, 2 + 1 + 2 * products + LINE_SEARCH_TRIES


def _weight_bytes(share: Share, size: ModelSize) -> float:
    """Return the bytes of weights a decode step reads: of autocast's copies, which frozen weights have none of."""
    weights = size.linear + size.adapters + size.head
    if share.recipe.model.dtype == "bfloat16":
        return weights * (FLOAT32 + 2 + 2 if share.recipe.model.lora else 2)
    return weights * FLOAT32
