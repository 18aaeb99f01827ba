"""Is the policy the same whether prompts are forwarded once or with every row? Asked of the first rows of every run."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rlhf_pg.data import collate
from rlhf_pg.preflight.probe import closeness
from rlhf_pg.rollout.weight_check import Closeness
from rlhf_pg.train.gradient_step import shares_prompts
from rlhf_pg.train.precompute import log_probs
from rlhf_pg.train.setup import Session
from rlhf_pg.types import Batch

PROMPTS, SAMPLES = 2, 2  # of the batch that are compared


def verify(session: Session, batch: Batch, message: Callable[[str], None]) -> None:
    """Compare the log-probs of a few rows of `batch` with those of whole rows; where they disagree, prompts are no
    longer shared in this session, and a message says so. Nothing to do for a policy that does not share them."""
    learner = session.learner
    if not shares_prompts(learner.policy):
        return
    near = closeness(session)
    mine = _gap(session, near, batch)
    gap = max(learner.backend.ranks.gather(mine, "shared prompts"), key=lambda gap: (gap != gap, gap))  # NaN is worst
    if gap <= near.limit:
        return
    modules = [learner.policy, session.reference_policy, learner.critic and learner.critic.module]
    for module in modules:
        if hasattr(module, "share_prompts") or hasattr(module, "module"):
            learner.backend.unwrap(module).share_prompts = False  # pyright: ignore[reportArgumentType]
    message(
        f"warning: log-probs with shared prompts are off by {gap:.1e} ({near} needed): prompts are forwarded with "
        "every row from here on, exact but slower; update.share_prompts=false does so without a word"
    )


def _gap(session: Session, near: Closeness, batch: Batch) -> float:
    """How far the log-probs of a few rows that share their prompts are from those of whole rows; 0 without rows."""
    few = _few(batch) if len(batch.group) else batch
    shared, whole = log_probs(session.learner.policy, few, session.learner.update), plain_log_probs(session, few)
    return near.gap(shared, whole, few.mask) if len(batch.group) else 0.0


def plain_log_probs(session: Session, batch: Batch) -> Tensor:
    """[B, C] by the policy under training, with every row forwarded whole."""
    learner = session.learner
    policy = learner.backend.unwrap(learner.policy)
    shares, policy.share_prompts = policy.share_prompts, False
    try:
        return log_probs(learner.policy, batch, learner.update)
    finally:
        policy.share_prompts = shares


def _few(batch: Batch) -> Batch:
    """The first rows of the first prompts."""
    rows = [(batch.group == n).nonzero().squeeze(1)[:SAMPLES] for n in range(min(PROMPTS, len(batch.prompt_lengths)))]
    return collate.select(batch, torch.cat(rows))
