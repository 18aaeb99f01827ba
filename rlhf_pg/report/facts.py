"""What one run cost and how far it moved, from what it logged: one number each, None where it logged nothing."""

from __future__ import annotations

import math
import statistics

from rlhf_pg.display.figures import number
from rlhf_pg.display.text import visible
from rlhf_pg.report.run_data import Point, Run, cumulative, dig, series

CRITICS = {"copy": "own copy", "policy": "shared"}


def algorithm(run: Run) -> str:
    return visible(str(run.summary.get("algorithm") or dig(run.config, "algorithm.name", "–")))


def critic(run: Run) -> str:
    """ "none", "own copy", "shared" with the policy, or the model it starts from."""
    if not run.config:
        return "–"
    backbone = dig(run.config, "critic.backbone")
    if backbone is None:
        return "own copy" if has_critic(run) else "none"
    return CRITICS.get(str(backbone), visible(str(backbone)))


def has_critic(run: Run) -> bool:
    """Whether the recipe has a critic: config.yaml has its section only then."""
    return bool(dig(run.config, "critic")) or any(key.startswith("value/") for row in run.steps for key in row)


def has_trust_region(run: Run) -> bool:
    options = dig(run.config, "algorithm.options")
    named = isinstance(options, dict) and "cg_iterations" in options
    return named or any(key.startswith("trust/") for row in run.steps for key in row)


def peak_memory_mb(run: Run) -> float | None:
    return max(finite(run, "memory/peak_mb"), default=None)


def step_seconds(run: Run) -> float | None:
    """The median, which the first, slow steps do not move."""
    seconds = finite(run, "time/step_s")
    return statistics.median(seconds) if seconds else None


def update_share(run: Run) -> float | None:
    """Seconds in updates over seconds in steps, of the steps that logged both."""
    both = [(number(row, "time/update_s"), number(row, "time/step_s")) for row in run.steps]
    known = [(u, s) for u, s in both if u is not None and s is not None and math.isfinite(u + s)]
    total = sum(s for _, s in known)
    return sum(u for u, _ in known) / total if total > 0 else None


def optimizer_steps(run: Run) -> float | None:
    taken = finite(run, "update/steps")
    return sum(taken) if taken else None


def kl_of_steps(run: Run) -> list[Point]:
    """KL(old || new) of each rollout step: a trust region's, measured after its step, else the mean of the update's.

    Empty when nothing was measured. An update of a single optimizer step always logs 0: its gradient is taken at the
    very weights that sampled, so that is no measurement.
    """
    trusted = series(run, "trust/kl")
    if trusted:
        return trusted
    measured = series(run, "kl/old")
    return measured if any(y for _, y in measured) else []


def kl_moved(run: Run) -> list[Point]:
    """(step, KL of the steps up to it added up); steps without a number, as those of a critic alone, add nothing."""
    measured = dict(kl_of_steps(run))
    if not measured:
        return []
    return list(cumulative(run, [measured.get(float(row["step"])) or 0.0 for row in run.steps]).items())


def finite(run: Run, key: str) -> list[float]:
    return [y for _, y in series(run, key) if y is not None]
