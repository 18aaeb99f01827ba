"""From signals to advantages: the algorithm's credit, standardised over the whole step and all ranks if it asks."""

from __future__ import annotations

from dataclasses import replace

from rlhf_pg import functional as F
from rlhf_pg.train.gradient_step import Learner
from rlhf_pg.types import Batch, Credit, Signals


def assign(learner: Learner, batch: Batch, signals: Signals) -> Credit:
    """The credit of every sampled token, with what there is to log of it in `metrics`."""
    objective, backend = learner.objective, learner.backend
    credit = objective.algorithm.credit(batch, signals, objective.options)
    _, total, squares = moments = backend.sum(F.normalize.moments(credit.advantage, batch.mask))
    metrics = {
        **{f"credit/{name}": value for name, value in credit.metrics.items()},
        **_value_metrics(learner, batch, signals, credit),
        "advantage/mean": float(total / moments[0]),
        "advantage/rms": float((squares / moments[0]).sqrt()),
    }
    if objective.options.standardise:
        advantage = F.normalize.standardise(credit.advantage, batch.mask, moments)
        credit = replace(credit, advantage=advantage)
    return replace(credit, metrics=metrics)


def _value_metrics(learner: Learner, batch: Batch, signals: Signals, credit: Credit) -> dict[str, float]:
    """What the critic knew before this step. Explained variance: 1 - var(returns - V) / var(returns); 1 is perfect."""
    if signals.value is None or credit.returns is None:
        return {}
    measured = {
        "value": signals.value,
        "returns": credit.returns,
        "error": credit.returns - signals.value,
    }
    sums = {k: learner.backend.sum(F.normalize.moments(x, batch.mask)) for k, x in measured.items()}
    mean = {k: m[1] / m[0] for k, m in sums.items()}
    variance = {k: float(m[2] / m[0] - mean[k] ** 2) for k, m in sums.items()}
    explained = (
        {"value/explained_variance": 1 - variance["error"] / variance["returns"]} if variance["returns"] > 0 else {}
    )
    return {"value/mean": float(mean["value"]), "returns/mean": float(mean["returns"]), **explained}
