"""The gradient update: epochs x minibatches optimizer steps over one batch of rollouts, micro-batched exactly.

    gradient = sum over micro-batches of d/dtheta [ sum of token losses / count ]

`count` is taken over the whole optimizer step and all ranks before the first micro-batch: one denominator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_pg import functional as F
from rlhf_pg.algorithms.base import Algorithm
from rlhf_pg.config import KL, Optimizer, Update
from rlhf_pg.data import collate
from rlhf_pg.train.backend import Backend
from rlhf_pg.types import Batch, Credit, Signals


@dataclass(frozen=True)
class Objective:
    """What is minimised: an algorithm with its options, and the KL to the reference as a loss."""

    algorithm: Algorithm
    options: Any
    kl: KL
    longest: int  # rollout.max_new_tokens, the length that the "constant" denominator divides by

    @property
    def constant_length(self) -> int | None:
        return self.longest if self.options.denominator == "constant" else None

    @property
    def kl_in_loss(self) -> bool:
        return self.kl.coefficient > 0 and self.kl.placement == "loss"


@dataclass
class Learner:
    """The policy under training and how it is trained."""

    policy: nn.Module  # prepared by the backend
    optimizer: torch.optim.Optimizer
    backend: Backend
    objective: Objective
    update: Update
    optimization: Optimizer
    seed: int
    total_updates: int  # optimizer steps of the whole run: the learning rate schedule's length
    updates: int = 0  # optimizer steps done


def on_policy(update: Update) -> bool:
    """Whether every gradient is taken at the weights that sampled: then logp_old is logp, and needs no pass."""
    return update.epochs * update.minibatches == 1


def update(
    learner: Learner,
    batch: Batch,
    signals: Signals,
    credit: Credit,
    step: int,
    start: int = 0,
    poll: Callable[[], None] = lambda: None,
) -> Iterator[dict[str, float]]:
    """Take the optimizer steps of rollout step `step` from number `start` on, yielding the metrics of each.

    `poll` runs before every micro-batch and may raise; the step it interrupts has then changed nothing.
    """
    for rows in plan(batch, learner.update, learner.seed, step)[start:]:
        learner.optimizer.zero_grad(set_to_none=True)
        metrics = accumulate(learner, batch, signals, credit, rows, poll)
        rate = learner.optimization.lr * rate_factor(learner.optimization, learner.updates, learner.total_updates)
        for group in learner.optimizer.param_groups:
            group["lr"] = rate
        norm = learner.backend.clip(learner.policy.parameters(), learner.optimization.grad_clip)
        if not math.isfinite(norm):
            raise FloatingPointError(f"the gradient norm of step {step} is {norm}: no optimizer step was taken")
        learner.optimizer.step()
        learner.updates += 1
        yield metrics | {"grad_norm": norm, "lr": rate}


def plan(batch: Batch, update: Update, seed: int, step: int) -> list[Tensor]:
    """Rows [M] of each optimizer step: every epoch a fresh permutation of the prompts, cut into `minibatches`."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
    prompts = len(batch.prompt_lengths)
    steps = []
    for _ in range(update.epochs):
        order = torch.randperm(prompts, generator=generator).to(batch.group.device)
        pieces = order.tensor_split(min(update.minibatches, prompts))
        steps += [torch.isin(batch.group, piece).nonzero().squeeze(1) for piece in pieces]
    return steps


def accumulate(
    learner: Learner,
    batch: Batch,
    signals: Signals,
    credit: Credit,
    rows: Tensor,
    poll: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Add the gradient of `rows` to the parameters' .grad, micro-batch by micro-batch; return token-mean metrics."""
    objective = learner.objective
    how, constant_length = objective.options.denominator, objective.constant_length
    mask = batch.mask[rows]
    count = learner.backend.sum(F.normalize.count(mask, how, constant_length))
    sums: dict[str, Tensor] = {}
    forwarded = 0
    budget, shared = learner.update.tokens_per_microbatch, learner.update.share_prompts
    for micro in collate.micro_batches(batch, rows, budget, shared):
        poll()
        part = collate.select(batch, micro)
        of_part = (_select(signals, micro, part), _select(credit, micro, part))
        token_loss, metrics = _token_loss(learner.policy, objective, part, *of_part)
        loss = F.normalize.total(token_loss, part.mask, how, count, constant_length)
        learner.backend.backward(loss)
        shares = {k: torch.where(part.mask, v.detach().float(), 0.0).sum() / mask.sum() for k, v in metrics.items()}
        for name, share in (shares | {"loss": loss.detach()}).items():
            sums[name] = sums[name] + share if name in sums else share
        forwarded += part.prompt_tokens.numel() + part.tokens.numel()
    return {name: float(value) for name, value in sums.items()} | {"tokens/forwarded": forwarded}


def _token_loss(
    policy: nn.Module, objective: Objective, batch: Batch, signals: Signals, credit: Credit
) -> tuple[Tensor, dict[str, Tensor]]:
    """The unreduced loss [B, C] of one micro-batch, and what to log of it."""
    logp, entropy = policy(batch)
    old = logp.detach() if signals.logp_old is None else signals.logp_old
    signals = replace(signals, logp_old=old)
    token_loss = objective.algorithm.objective(logp, entropy, batch, signals, credit, objective.options)
    loss, metrics = token_loss.loss, dict(token_loss.metrics)
    if signals.logp_ref is not None:
        metrics["kl/ref"] = F.kl.k3(logp, signals.logp_ref)
        if objective.kl_in_loss:
            loss = loss + objective.kl.coefficient * getattr(F.kl, objective.kl.estimator)(logp, signals.logp_ref)
    metrics["entropy"] = entropy
    metrics["mismatch/kl"] = F.kl.k3(batch.logp_rollout, old)
    return loss, metrics


def rate_factor(optimization: Optimizer, number: int, total: int) -> float:
    """The share of `lr` used by optimizer step `number` (from 0) of `total`: linear warm-up, then the schedule."""
    if number < optimization.warmup_steps:
        return (number + 1) / optimization.warmup_steps
    if optimization.schedule == "constant":
        return 1.0
    done = (number - optimization.warmup_steps) / max(1, total - optimization.warmup_steps)
    if optimization.schedule == "linear":
        return max(0.0, 1.0 - done)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))


def _select(values, rows: Tensor, part: Batch):
    """The [B, C] tensors of a Signals or Credit for some rows, trimmed like `part`."""
    width = part.tokens.shape[1]
    picked = {f.name: getattr(values, f.name) for f in fields(values)}
    return replace(values, **{k: v[rows, :width] for k, v in picked.items() if isinstance(v, Tensor)})
