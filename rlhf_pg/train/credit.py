"""From signals to advantages: the algorithm's credit, standardised over the whole step and all ranks if it asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rlhf_pg import functional as F
from rlhf_pg.distributed.backend import Backend
from rlhf_pg.train.learner import Learner
from rlhf_pg.types import Batch, Credit, Signals

SAME = 1e-12  # of the mean square: a variance that rounding alone may give to float32 returns that are equal
MOMENT = "moment/"  # opens the names of moments among the numbers sent to the other ranks
Moments = dict[str, Tensor]  # by quantity: count, sum and sum of squares over sampled tokens, float64 [3]


def assign(learner: Learner, batch: Batch, signals: Signals) -> Credit | None:
    """The credit of every sampled token, with what there is to log of it in `metrics`.

    None where it is made during the update, from the values of the same forward (`ScoringPasses`).
    """
    if learner.passes.values == "update":
        return None
    objective, backend = learner.objective, learner.backend
    credit = make(learner, batch, signals)
    rows = len(batch.group)
    own = {f"credit/{name}": torch.tensor(value * rows) for name, value in credit.metrics.items()}
    sums, found = whole(backend, moments(credit, signals, batch.mask), own | {"rows": torch.tensor(rows)})
    logged = {name: value / sums["rows"] for name, value in sums.items() if name != "rows"} | metrics(found)
    if objective.options.standardise:
        credit = replace(credit, advantage=F.normalize.standardise(credit.advantage, batch.mask, found["advantage"]))
    return replace(credit, metrics=logged)


def make(learner: Learner, batch: Batch, signals: Signals) -> Credit:
    """The algorithm's credit of some rows, maybe none. Raises ValueError where a critic is given nothing to learn."""
    objective = learner.objective
    if not len(batch.group):
        nothing = torch.zeros_like(batch.logp_rollout)
        return Credit(nothing, nothing if learner.critic else None)
    credit = objective.algorithm.credit(batch, signals)
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
    return {name: torch.stack([part[name] for part in parts]).sum(dim=0) for name in (parts[0] if parts else ())}


def whole(backend: Backend, found: Moments, sums: dict[str, Tensor]) -> tuple[dict[str, float], Moments]:
    """Numbers and moments summed over all ranks, in one message; a rank may lack some."""
    places = [(name, i) for name in found for i in range(3)]
    own = [*sums.values(), *(found[name][i] for name, i in places)]
    device = backend.device
    values = torch.stack([x.detach().double().to(device) for x in own]).tolist() if own else []
    names = [*sums, *(f"{MOMENT}{name}/{i}" for name, i in places)]
    summed = backend.ranks.sum_named(dict(zip(names, values, strict=True)), "metrics")
    kept = {name: value for name, value in summed.items() if not name.startswith(MOMENT)}
    of = dict.fromkeys(name.removeprefix(MOMENT).rsplit("/", 1)[0] for name in summed if name.startswith(MOMENT))
    return kept, {
        n: torch.tensor([summed[f"{MOMENT}{n}/{i}"] for i in range(3)], dtype=torch.float64, device=device) for n in of
    }


def metrics(found: Moments) -> dict[str, float]:
    """What to log. Explained variance: 1 - var(returns - V) / var(returns); 1 is perfect."""
    count, total, squares = found["advantage"]
    out = {"advantage/mean": float(total / count), "advantage/rms": float((squares / count).sqrt())}
    if "value" not in found:
        return out
    mean, variance, square = {}, {}, {}
    for name in ("value", "returns", "error"):
        count, total, squares = found[name]
        mean[name] = float(total / count)
        square[name] = float(squares / count)
        variance[name] = square[name] - mean[name] ** 2
    out |= {"value/mean": mean["value"], "returns/mean": mean["returns"]}
    if variance["returns"] > SAME * square["returns"]:
        out["value/explained_variance"] = 1 - variance["error"] / variance["returns"]
    return out
