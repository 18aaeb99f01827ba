"""Train a critic model on the mean squared error to the returns; a head on the policy learns in gradient_step."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from rlhf_pg import functional as F
from rlhf_pg.config import Update
from rlhf_pg.training.gradient_step import micro_batches, minibatch_rows, prepare_critic_step, select_rows
from rlhf_pg.training.learner import CriticLearner, Learner
from rlhf_pg.types import Batch, Credit, Signals


def optimizer_steps(
    learner: Learner,
    batch: Batch,
    signals: Signals,
    credit: Credit | None,
    step: int,
    start: int = 0,
    poll: Callable[[], None] = lambda: None,
) -> Iterator[dict[str, float]]:
    """Take the critic's optimizer steps of rollout step `step` from number `start` on, yielding the metrics of each.

    Nothing to do for a critic that shares the policy's model. `poll` runs before every micro-batch and may raise.
    """
    critic = learner.critic
    if critic is None or critic.shared or credit is None or credit.returns is None:
        return
    schedule = _schedule(learner, critic)
    for rows in minibatch_rows(batch, schedule, learner.seed, step)[start:]:
        critic.optimizer.zero_grad(set_to_none=True)
        loss = _accumulate(learner, critic, schedule, batch, signals, credit.returns, rows, poll)
        norm = prepare_critic_step(critic, learner.backend)
        critic.optimizer.step()
        critic.updates += 1
        yield {"value/loss": loss, "value/grad_norm": norm}


@torch.no_grad()
def compute_values(learner: Learner, critic: CriticLearner, batch: Batch, poll: Callable[[], None]) -> Tensor:
    """Compute V [B, C] of the state before each sampled token by a critic model, 0 elsewhere."""
    out = torch.zeros_like(batch.logp_rollout)
    rows = torch.arange(len(batch.group), device=batch.group.device)
    for micro, part in micro_batches(critic.module, batch, rows, _schedule(learner, critic)):
        poll()
        out[micro, : part.tokens.shape[1]] = critic.module(part)
    return out


def _schedule(learner: Learner, critic: CriticLearner) -> Update:
    """Return the `update` section as it holds for a critic model."""
    return learner.update.model_copy(
        update={"epochs": critic.options.epochs, "minibatches": critic.options.minibatches}
    )


def _accumulate(
    learner: Learner,
    critic: CriticLearner,
    update: Update,
    batch: Batch,
    signals: Signals,
    returns: Tensor,
    rows: Tensor,
    poll: Callable[[], None],
) -> float:
    """Add the gradient of the value loss of `rows` to the critic's .grad, one denominator; returns the loss."""
    count = learner.backend.sum(F.normalize.count(batch.mask[rows], "token"), "denominators of the critic")
    total = count.new_zeros(())
    for micro, part in micro_batches(critic.module, batch, rows, update):
        poll()
        part_signals, target = select_rows(signals, micro, part), returns[micro, : part.tokens.shape[1]]
        loss = F.objectives.value_loss(critic.module(part), target, part_signals.value, critic.options.clip)
        reduced = F.normalize.total(loss, part.mask, "token", count)
        learner.backend.backward(reduced, critic.module)
        total = total + reduced.detach()
    return learner.backend.ranks.sum_named({"loss": float(total)}, "the critic's loss")["loss"]
