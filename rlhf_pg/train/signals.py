"""What is computed once per step, without gradient, before credit and objective: log-probs and token rewards."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from rlhf_pg import functional as F
from rlhf_pg.config import Update
from rlhf_pg.data import collate
from rlhf_pg.models.policy import Policy
from rlhf_pg.train.gradient_step import Learner, on_policy
from rlhf_pg.types import Batch, Signals

Reference = Callable[..., Tensor]  # (batch, poll) -> logp_ref [B, C]


def _never() -> None: ...


@torch.no_grad()
def log_probs(policy: nn.Module, batch: Batch, update: Update, poll: Callable[[], None] = _never) -> Tensor:
    """The policy's log-prob of every sampled token, [B, C], 0 where the mask is False, in micro-batches.

    `poll` runs before each and may raise, to leave at once.
    """
    logp = torch.zeros_like(batch.logp_rollout)
    rows = torch.arange(len(batch.group), device=batch.group.device)
    for micro in collate.micro_batches(batch, rows, update.tokens_per_microbatch, update.share_prompts):
        poll()
        part = collate.select(batch, micro)
        logp[micro, : part.tokens.shape[1]] = policy(part)[0].to(logp.dtype)
    return logp


def frozen_copy(policy: Policy) -> Policy:
    """The policy as it is now, to be kept as the reference: no gradient, no dropout."""
    model = copy.deepcopy(policy.model).requires_grad_(False)
    return Policy(model, policy.temperature, policy.share_prompts).eval()


def reference(policy: Policy, update: Update, autocast: Callable = nullcontext) -> tuple[Reference, Policy | None]:
    """The frozen initial policy: the adapter switched off for a LoRA policy, else a copy of the weights (returned)."""
    if hasattr(policy.model, "disable_adapter"):

        def adapter_off(batch: Batch, poll: Callable[[], None] = _never) -> Tensor:
            with policy.model.disable_adapter(), autocast():  # pyright: ignore[reportCallIssue]
                return log_probs(policy, batch, update, poll)

        return adapter_off, None
    kept = frozen_copy(policy)

    def copied(batch: Batch, poll: Callable[[], None] = _never) -> Tensor:
        with autocast():
            return log_probs(kept, batch, update, poll)

    return copied, kept


def signals(learner: Learner, reference: Reference | None, batch: Batch, poll: Callable[[], None] = _never) -> Signals:
    """Everything an algorithm's credit and objective read. A pass is spent only on what the recipe uses."""
    kl = learner.objective.kl
    in_reward = kl.coefficient > 0 and kl.placement == "reward"
    needs_old = learner.objective.algorithm.needs_old and not on_policy(learner.update)
    logp_old = log_probs(learner.policy, batch, learner.update, poll) if needs_old or in_reward else None
    logp_ref = reference(batch, poll) if reference else None
    token_reward = terminal_reward(batch)
    if in_reward and logp_old is not None and logp_ref is not None:
        penalty = kl.coefficient * getattr(F.kl, kl.estimator)(logp_old, logp_ref)
        token_reward = token_reward - torch.where(batch.mask, penalty, 0.0)
    return Signals(token_reward=token_reward, logp_old=logp_old, logp_ref=logp_ref)


def terminal_reward(batch: Batch) -> Tensor:
    """Each row's reward on its tokens, [B, C]: on single ones what they were given, the rest on the last sampled one."""
    last = (collate.lengths(batch.mask) - 1).clamp(min=0)
    nothing = torch.zeros_like(batch.logp_rollout)
    given = nothing if batch.token_reward is None else batch.token_reward
    rest = batch.reward - given.sum(dim=1)  # [B]
    return given + nothing.scatter(1, last[:, None], rest[:, None])
