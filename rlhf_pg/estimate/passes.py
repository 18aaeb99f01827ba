"""Which passes a rollout step makes beside sampling: the one place of this folder that asks the recipe's algorithm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from rlhf_pg.algorithms.base import TrustRegionOptions
from rlhf_pg.config import Recipe
from rlhf_pg.config.unused_keys import algorithm_of


@dataclass(frozen=True)
class Passes:
    """The passes of one rollout step. Those without gradient are what `train/precompute.py` makes."""

    trust_region: TrustRegionOptions | None  # of a natural gradient step; None: ordinary optimizer steps
    critic: bool  # values from a model of the critic's own, which takes its own optimizer steps
    reference: bool  # a forward of the reference
    policy: bool  # a forward of the policy before the update, for old log-probs or the head's values

    @property
    def without_gradient(self) -> int:
        """How many forwards the policy and its reference make before the update; the critic's comes on top."""
        return self.reference + self.policy


def passes_of(recipe: Recipe) -> Passes:
    """Return the passes that the recipe's algorithm needs under its options."""
    algorithm = algorithm_of(recipe)
    on_policy, with_kl = recipe.update.on_policy, recipe.kl.coefficient > 0
    if algorithm is None:  # a wrong name or option, which reading the recipe reports
        return Passes(None, critic=False, reference=with_kl, policy=False)
    options = algorithm.options.model_validate(recipe.algorithm.options)
    rollout = recipe.rollout
    penalised = with_kl and recipe.kl.placement == "reward"
    samples_live_weights = rollout.engine == "native" and rollout.server is None and not rollout.overlap
    rollout_is_old = samples_live_weights and recipe.model.dtype == "float32"
    old = (penalised or (algorithm.needs_old and not on_policy)) and not rollout_is_old
    head = bool(algorithm.needs_critic) and recipe.critic.backbone == "policy"
    by_row = bool(algorithm.credit_by_row) and not options.standardise
    values_from_update = by_row and on_policy and not penalised
    return Passes(
        cast(TrustRegionOptions, options) if algorithm.update == "trust_region" else None,
        critic=bool(algorithm.needs_critic) and not head,
        reference=with_kl,
        policy=old or (head and not values_from_update),
    )
