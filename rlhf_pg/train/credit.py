"""From signals to advantages: the algorithm's credit, standardised over the whole step and all ranks if it asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rlhf_pg import functional as F
from rlhf_pg.train.backend import Backend
from rlhf_pg.train.learner import Learner
from rlhf_pg.types import Batch, Credit, Signals

SAME = 1e-12  # of the mean square: a variance that rounding alone may give to float32 returns that are equal
Moments = dict[str, Tensor]  # by quantity: count, sum and sum of squares over sampled tokens, float64 [3]


def assign(learner: Learner, batch: Batch, signals: Signals) -> Credit | None:
    """The credit of every sampled token, with what there is to log of it in `metrics`.

    None where it is made during the update, from the values of the same forward (`Learner.values_from_update`).
    """
    if learner.values_from_update:
        return None
    objective, backend = learner.objective, learner.backend
    credit = make(learner, batch, signals)
    found = moments(credit, signals, batch.mask)
    logged = {f"credit/{name}": value for name, value in credit.metrics.items()} | metrics(found, backend)
    if objective.options.standardise:
        whole = backend.sum(found["advantage"])
        credit = replace(credit, advantage=F.normalize.standardise(credit.advantage, batch.mask, whole))
    return replace(credit, metrics=logged)


def make(learner: Learner, batch: Batch, signals: Signals) -> Credit:
    """The algorithm's credit of some rows. Raises ValueError where a critic is given nothing to learn."""
    objective = learner.objective
    credit = objective.algorithm.credit(batch, signals, objective.options)
    if learner.critic and credit.returns is None:
        name = objective.algorithm.name
        raise ValueError(f"algorithm {name} has needs_critic, but its credit has no `returns` for the critic to learn")
    return credit


def moments(credit: Credit, signals: Signals, mask: Tensor) -> Moments:
    """Of the advantage, and of a critic's values, returns and errors, over the sampled tokens of some rows."""
    of = {"advantage": credit.advantage}
    if signals.value is not None and credit.returns is not None:
        of |= {"value": signals.value, "returns": credit.returns, "error": credit.returns - signals.value}
    return {name: F.normalize.moments(x, mask) for name, x in of.items()}


def together(parts: Sequence[Moments]) -> Moments:
    """The moments of disjoint rows as one."""
    return {name: torch.stack([part[name] for part in parts]).sum(dim=0) for name in parts[0]}


def metrics(found: Moments, backend: Backend) -> dict[str, float]:
    """What to log, over all ranks. Explained variance: 1 - var(returns - V) / var(returns); 1 is perfect."""
    count, total, squares = backend.sum(found["advantage"])
    out = {"advantage/mean": float(total / count), "advantage/rms": float((squares / count).sqrt())}
    if "value" not in found:
        return out
    mean, variance, square = {}, {}, {}
    for name in ("value", "returns", "error"):
        count, total, squares = backend.sum(found[name])
        mean[name] = float(total / count)
        square[name] = float(squares / count)
        variance[name] = square[name] - mean[name] ** 2
    out |= {"value/mean": mean["value"], "returns/mean": mean["returns"]}
    if variance["returns"] > SAME * square["returns"]:
        out["value/explained_variance"] = 1 - variance["error"] / variance["returns"]
    return out
