"""Compute, once per step and without gradient, what credit and objective read: log-probs, values, token rewards."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from rlhf_pg import functional as F
from rlhf_pg.config import Update
from rlhf_pg.data import collate
from rlhf_pg.models.adapter import has_adapter
from rlhf_pg.models.policy import Policy
from rlhf_pg.training import critic_step
from rlhf_pg.training.gradient_step import micro_batches
from rlhf_pg.training.learner import Learner
from rlhf_pg.types import Batch, Signals

Reference = Callable[..., Tensor]  # (batch, poll) -> logp_ref [B, C]


def _never() -> None: ...


@torch.no_grad()
def log_probs(policy: nn.Module, batch: Batch, update: Update, poll: Callable[[], None] = _never) -> Tensor:
    """Compute the policy's log-prob of every sampled token, [B, C], 0 where the mask is False, in micro-batches.

    `poll` runs before each and may raise, to leave at once.
    """
    return _pass(policy, batch, update, poll, [0])[0]


@torch.no_grad()
def _pass(
    policy: nn.Module, batch: Batch, update: Update, poll: Callable[[], None], outputs: Sequence[int], **options: bool
) -> list[Tensor]:
    """Run a policy's forward with `options` over the batch; return its outputs of these numbers, each [B, C]."""
    rows = torch.arange(len(batch.group), device=batch.group.device)
    collected = [torch.zeros_like(batch.logp_rollout) for _ in outputs]
    for micro, part in micro_batches(policy, batch, rows, update):
        poll()
        of_part = policy(part, **options)
        for tensor, number in zip(collected, outputs, strict=True):
            tensor[micro, : part.tokens.shape[1]] = of_part[number].to(tensor.dtype)
    return collected


def frozen_copy(policy: Policy) -> Policy:
    """Copy the policy as it is now, for a reference: no gradient, no dropout."""
    model = copy.deepcopy(policy.model).requires_grad_(False)
    return Policy(model, policy.temperature, policy.share_prompts).eval()


def reference(
    policy: Policy,
    update: Update,
    autocast: Callable = nullcontext,
    copied_policy: Policy | None = None,
    freeze: Callable[[nn.Module], nn.Module] = lambda module: module,
) -> tuple[Reference, Policy | None]:
    """Return how the frozen initial policy scores, and the copy of the weights that this takes.

    A LoRA policy needs no copy: its adapter is switched off. `copied_policy`: the copy, if it exists already; `freeze`:
    the backend's `prepare_frozen`.
    """
    if has_adapter(policy.model):

        def adapter_off(batch: Batch, poll: Callable[[], None] = _never) -> Tensor:
            with policy.model.disable_adapter(), autocast():  # pyright: ignore[reportCallIssue]
                return log_probs(policy, batch, update, poll)

        return adapter_off, None
    copied_policy = copied_policy or frozen_copy(policy)
    scorer = freeze(copied_policy)

    def copied(batch: Batch, poll: Callable[[], None] = _never) -> Tensor:
        with autocast():
            return log_probs(scorer, batch, update, poll)

    return copied, copied_policy


def signals(learner: Learner, reference: Reference | None, batch: Batch, poll: Callable[[], None] = _never) -> Signals:
    """Compute all that credit and objective read, by the passes of `learner.passes`."""
    kl = learner.objective.kl
    logp_old, value = _old(learner, batch, poll)
    if learner.passes.old == "engine":
        logp_old = torch.where(batch.mask, batch.logp_rollout, 0)
    logp_ref = reference(batch, poll) if reference else None
    token_reward = terminal_reward(batch)
    if kl.in_reward and logp_old is not None and logp_ref is not None:
        penalty = learner.kl_coefficient * getattr(F.kl, kl.estimator)(logp_old, logp_ref)
        token_reward = token_reward - torch.where(batch.mask, penalty, 0.0)
    return Signals(token_reward=token_reward, logp_old=logp_old, logp_ref=logp_ref, value=value)


def _old(learner: Learner, batch: Batch, poll: Callable[[], None]) -> tuple[Tensor | None, Tensor | None]:
    """Compute log-probs and values before the update, by the passes that `learner.passes` names."""
    policy, update, passes = learner.policy, learner.update, learner.passes
    if passes.values == "policy":
        if passes.old == "pass":
            logp, value = _pass(policy, batch, update, poll, [0, 2], value=True)
            return logp, value
        return None, _pass(policy, batch, update, poll, [0], value=True, score=False)[0]
    logp = log_probs(policy, batch, update, poll) if passes.old == "pass" else None
    if passes.values == "critic" and learner.critic:
        return logp, critic_step.compute_values(learner, learner.critic, batch, poll)
    return logp, None


def terminal_reward(batch: Batch) -> Tensor:
    """Put each row's reward on its tokens, [B, C]: what single tokens have, the rest on the last sampled one."""
    last = (collate.lengths(batch.mask) - 1).clamp(min=0)
    zeros = torch.zeros_like(batch.logp_rollout)
    on_tokens = zeros if batch.token_reward is None else torch.where(batch.mask, batch.token_reward, 0)
    rest = batch.reward - on_tokens.sum(dim=1)  # [B]
    return on_tokens + zeros.scatter(1, last[:, None], rest[:, None])
