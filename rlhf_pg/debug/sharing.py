"""Is the policy the same whether prompts are forwarded once or with every row? Asked of the first rows of every run."""

from __future__ import annotations

from collections.abc import Callable

import torch

from rlhf_pg.data import collate
from rlhf_pg.debug.probe import Closeness
from rlhf_pg.models.policy import Policy
from rlhf_pg.train.gradient_step import shares_prompts
from rlhf_pg.train.setup import Session
from rlhf_pg.train.signals import log_probs
from rlhf_pg.types import Batch

PROMPTS, SAMPLES = 2, 2  # of the batch that are compared


def verify(session: Session, batch: Batch, message: Callable[[str], None]) -> None:
    """Compare the log-probs of a few rows of `batch` with those of whole rows; where they disagree, prompts are no
    longer shared in this session, and a message says so. Nothing to do for a policy that does not share them."""
    learner = session.learner
    if not shares_prompts(learner.policy):
        return
    few = _few(batch)
    plain = Policy(session.model, session.recipe.rollout.temperature, share_prompts=False)
    with learner.backend.autocast():
        shared, whole = (log_probs(policy, few, learner.update) for policy in (learner.policy, plain))
    near = Closeness.of(session)
    gap = near.gap(shared, whole, few.mask)
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


def _few(batch: Batch) -> Batch:
    """The first rows of the first prompts."""
    rows = [(batch.group == n).nonzero().squeeze(1)[:SAMPLES] for n in range(min(PROMPTS, len(batch.prompt_lengths)))]
    return collate.select(batch, torch.cat(rows))
