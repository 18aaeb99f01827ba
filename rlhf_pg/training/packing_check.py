"""Compare the policy's log-probs with prompts forwarded once and with every row, on the first rows of every run."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rlhf_pg.data import collate
from rlhf_pg.rollout.weight_check import Closeness, rounding
from rlhf_pg.training.gradient_step import shares_prompts
from rlhf_pg.training.precompute import log_probs
from rlhf_pg.training.setup import Session
from rlhf_pg.types import Batch

FLOAT32_LIMIT = 1e-3  # of the largest difference of a log-prob
PROMPTS, SAMPLES = 2, 2  # of the batch that are compared


def closeness(session: Session) -> Closeness:
    """Return how near two log-probs of the same tokens must be in a run's arithmetic, by its model's own rounding."""
    dtype = session.recipe.model.dtype
    if session.rounding is None:
        session.rounding = rounding(session.model, dtype)
    return Closeness.of(dtype, float32=FLOAT32_LIMIT, rounding=session.rounding)


def verify(session: Session, batch: Batch, message: Callable[[str], None]) -> None:
    """Stop sharing prompts in this session, and say so, if that changes the log-probs of a few rows of `batch`.

    Nothing to do for a policy that does not share them.
    """
    learner = session.learner
    if not shares_prompts(learner.policy):
        return
    limit = closeness(session)
    gaps = learner.backend.ranks.gather(_gap(session, limit, batch), "shared prompts")
    gap = max(gaps, key=lambda gap: (gap != gap, gap))  # NaN is worst
    if gap <= limit.limit:
        return
    modules = [learner.policy, session.reference_policy, learner.critic and learner.critic.module]
    for module in modules:
        if hasattr(module, "share_prompts") or hasattr(module, "module"):
            learner.backend.unwrap(module).share_prompts = False  # pyright: ignore[reportArgumentType]
    message(
        f"warning: log-probs with shared prompts are off by {gap:.1e} ({limit} needed): prompts are forwarded with "
        "every row from here on, exact but slower; update.share_prompts=false does so from the start"
    )


def _gap(session: Session, limit: Closeness, batch: Batch) -> float:
    """Return how far the log-probs of a few rows that share their prompts are from those of padded rows; 0 if none."""
    rows = _first_rows(batch) if len(batch.group) else batch
    packed, padded = log_probs(session.learner.policy, rows, session.learner.update), padded_log_probs(session, rows)
    return limit.gap(packed, padded, rows.mask) if len(batch.group) else 0.0


def padded_log_probs(session: Session, batch: Batch) -> Tensor:
    """Compute log-probs [B, C] by the policy under training, every row forwarded with its prompt."""
    learner = session.learner
    policy = learner.backend.unwrap(learner.policy)
    shares, policy.share_prompts = policy.share_prompts, False
    try:
        return log_probs(learner.policy, batch, learner.update)
    finally:
        policy.share_prompts = shares


def _first_rows(batch: Batch) -> Batch:
    """Return the first rows of the first prompts."""
    rows = [(batch.group == n).nonzero().squeeze(1)[:SAMPLES] for n in range(min(PROMPTS, len(batch.prompt_lengths)))]
    return collate.select(batch, torch.cat(rows))
