"""The distance between the engine that sampled and the trainer that learns: measured on every step, and acted upon.

    w  = pi_trainer / pi_engine   of a sampled token, both at the temperature of sampling
    kl = k3                       whose mean estimates KL(engine || trainer) per token

The trainer's log-probs are those at the start of the update. `update.mismatch.cap` weighs the policy's loss by w,
`beyond` says what becomes of a w beyond it; `limit` is an alarm on kl, `action` what follows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlhf_pg import functional as F
from rlhf_pg.config import Update
from rlhf_pg.errors import RunError
from rlhf_pg.types import Batch

MEAN_WEIGHT, MEAN_SQUARE = "mismatch/weight", "mismatch/weight_square"  # on the way to mismatch/ess, not logged
MEASURED = 1e9  # ratios above it count as this in mismatch/ess, whose square must be a float


def of_tokens(batch: Batch, old: Tensor, update: Update) -> tuple[Tensor | None, dict[str, Tensor]]:
    """Return (what multiplies the policy's loss [B, C], None for nothing; what to log of it, each [B, C]).

    old: the trainer's log-probs [B, C].
    """
    kl = F.kl.k3(batch.logp_rollout, old)
    metrics, cap, weight = {"mismatch/kl": kl}, update.mismatch.cap, None
    if cap is not None:
        make = F.importance.truncated if update.mismatch.beyond == "truncate" else F.importance.masked
        beyond = F.importance.is_capped if update.mismatch.beyond == "truncate" else F.importance.is_masked
        weight = torch.where(batch.mask, make(old, batch.logp_rollout, cap), 1)  # NaN in padding must not reach a loss
        metrics["mismatch/capped"] = beyond(old, batch.logp_rollout, cap)
    if update.mismatch.limit is not None and update.mismatch.action == "mask":
        over = F.importance.rows_over(kl, batch.mask, update.mismatch.limit)[:, None].expand_as(batch.mask)  # [B, C]
        weight = torch.where(over, 0, torch.ones_like(old) if weight is None else weight)
        metrics["mismatch/masked"] = over.to(kl.dtype)
    used = F.importance.truncated(old, batch.logp_rollout, MEASURED) if weight is None else weight
    used = torch.where(batch.mask, used, 1)
    return weight, metrics | {MEAN_WEIGHT: used, MEAN_SQUARE: used.square()}


def worst(batch: Batch, old: Tensor) -> Tensor:
    """Return the largest |log w| of a sampled token, a scalar; 0 where there is none."""
    gap = (old - batch.logp_rollout).abs()
    return torch.where(batch.mask, gap, 0).amax() if gap.numel() else gap.new_zeros(())


def finished(means: dict[str, float], update: Update) -> dict[str, float]:
    """Put mismatch/ess in the place of the weights' moments of a step, and mismatch/alarm where there is a limit.

    Raises RunError, before anything has been learned from the step, where the action is to stop.
    """
    means = dict(means)
    weights = torch.tensor([1.0, means.pop(MEAN_WEIGHT), means.pop(MEAN_SQUARE)], dtype=torch.float64)
    metrics = means | {"mismatch/ess": float(F.importance.effective_share(weights))}
    kl, limit = metrics["mismatch/kl"], update.mismatch.limit
    if limit is None:
        return metrics
    alarm = not kl <= limit or math.isnan(kl)
    if alarm and update.mismatch.action == "stop":
        raise RunError(
            f"mismatch/kl is {kl:.3g} nats per token, above update.mismatch.limit={limit:g}: the rollout engine does "
            "not sample from the policy that is trained; nothing was learned from this step"
        )
    return metrics | {"mismatch/alarm": float(alarm)}
