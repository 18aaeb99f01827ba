"""Turn signals into advantages: the algorithm's credit, standardised over the step and all ranks on request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rlhf_pg import functional as F
from rlhf_pg.distributed.backend import Backend
from rlhf_pg.training.learner import Learner
from rlhf_pg.types import Batch, Credit, Signals

SAME = 1e-12  # of the mean square: a variance that rounding alone may give to float32 returns that are equal
MOMENT = "moment/"  # opens the names of moments among the numbers sent to the other ranks
Moments = dict[str, Tensor]  # by quantity: count, sum and sum of squares over sampled tokens, float64 [3]


def assign(learner: Learner, batch: Batch, signals: Signals) -> Credit | None:
    """Assign the credit of every sampled token, with what to log of it in `metrics`.

    Returns None where it is computed during the update, from the values of the same forward (`ScoringPasses`).
    """
    if learner.passes.values == "update":
        return None
    objective, backend = learner.objective, learner.backend
    credit = compute(learner, batch, signals)
    rows = len(batch.group)
    sums = {f"credit/{name}": torch.tensor(value * rows) for name, value in credit.metrics.items()}
    sums["rows"] = torch.tensor(rows)
    totals, all_moments = sum_over_ranks(backend, moments(credit, signals, batch.mask), sums)
    all_rows = totals.pop("rows")
    logged = {name: total / all_rows for name, total in totals.items()} | metrics(all_moments)
    if objective.options.standardise:
        advantage = F.normalize.standardise(credit.advantage, batch.mask, all_moments["advantage"])
        credit = replace(credit, advantage=advantage)
    return replace(credit, metrics=logged)


def compute(learner: Learner, batch: Batch, signals: Signals) -> Credit:
    """Compute the algorithm's credit of some rows, maybe none.

    Raises ValueError for a credit without `returns`, from which a critic could not learn.
    """
    objective = learner.objective
    if not len(batch.group):
        zeros = torch.zeros_like(batch.logp_rollout)  # [0, C]
        return Credit(zeros, zeros if learner.critic else None)
    credit = objective.algorithm.credit(batch, signals)
    if learner.critic and credit.returns is None:
        name = objective.algorithm.name
        raise ValueError(f"algorithm {name} has needs_critic, but its credit has no `returns` for the critic to learn")
    return credit


def moments(credit: Credit, signals: Signals, mask: Tensor) -> Moments:
    """Compute moments of the advantage, and of a critic's values, returns and errors, over sampled tokens."""
    quantities = {"advantage": credit.advantage}
    if signals.value is not None and credit.returns is not None:
        quantities |= {"value": signals.value, "returns": credit.returns, "error": credit.returns - signals.value}
    return {name: F.normalize.moments(x, mask) for name, x in quantities.items()}


def add(parts: Sequence[Moments]) -> Moments:
    """Add the moments of disjoint rows."""
    return {name: torch.stack([part[name] for part in parts]).sum(dim=0) for name in (parts[0] if parts else ())}


def sum_over_ranks(backend: Backend, moments: Moments, sums: dict[str, Tensor]) -> tuple[dict[str, float], Moments]:
    """Return numbers and moments summed over all ranks, sent in one message; a rank may lack some."""
    flat = dict(sums)
    for name, triple in moments.items():
        flat |= {f"{MOMENT}{name}/{i}": triple[i] for i in range(3)}
    values = torch.stack([x.detach().double().to(backend.device) for x in flat.values()]).tolist() if flat else []
    totals = backend.ranks.sum_named(dict(zip(flat, values, strict=True)), "metrics")
    quantities = dict.fromkeys(n.removeprefix(MOMENT).rsplit("/", 1)[0] for n in totals if n.startswith(MOMENT))
    all_moments = {
        name: torch.tensor(
            [totals.pop(f"{MOMENT}{name}/{i}") for i in range(3)], dtype=torch.float64, device=backend.device
        )
        for name in quantities
    }
    return totals, all_moments


def metrics(moments: Moments) -> dict[str, float]:
    """Return what to log. Explained variance: 1 - var(returns - V) / var(returns); 1 is perfect."""
    count, total, squares = moments["advantage"]
    out = {"advantage/mean": float(total / count), "advantage/rms": float((squares / count).sqrt())}
    if "value" not in moments:
        return out
    mean, variance, square = {}, {}, {}
    for name in ("value", "returns", "error"):
        count, total, squares = moments[name]
        mean[name] = float(total / count)
        square[name] = float(squares / count)
        variance[name] = square[name] - mean[name] ** 2
    out |= {"value/mean": mean["value"], "returns/mean": mean["returns"]}
    if variance["returns"] > SAME * square["returns"]:
        out["value/explained_variance"] = 1 - variance["error"] / variance["returns"]
    return out
