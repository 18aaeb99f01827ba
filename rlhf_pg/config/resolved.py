"""The recipe as it will run: one frozen object, made once when a recipe is read, and handed down from there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from rlhf_pg.algorithms.base import BoundAlgorithm
from rlhf_pg.config.launch import Launch
from rlhf_pg.config.learning import KL, Critic, Optimizer, Update
from rlhf_pg.config.recipe import (
    Checkpoint,
    Data,
    Eval,
    Log,
    Model,
    Recipe,
    RewardSpec,
    RolloutSection,
    RunSection,
    samples_as_trainer,
)

OVERLAP_CAP = 2.0  # of importance weights one step old: Yao et al. 2025's, see functional/importance.py


@dataclass(frozen=True)
class ScoringPasses:
    """What a step must know besides rewards before its update, and where it comes from.

    `old`, log-probs at the start of the update: "current", those of the update's own forward, where a rollout has one
    optimizer step; "engine", those of sampling, where the engine computes what the trainer would; else a "pass".
    `values` of the critic's head on the policy: from a pass of the "policy" (the one for `old`, if there is one), or
    from the "update"'s own forward; of a critic model: a pass of the "critic".
    """

    reference: bool = False  # a pass of the frozen reference policy
    old: Literal["current", "engine", "pass"] = "current"
    values: Literal["none", "critic", "policy", "update"] = "none"

    @classmethod
    def of(
        cls, algorithm: BoundAlgorithm, kl: KL, update: Update, critic: Critic, *, engine_is_trainer: bool
    ) -> ScoringPasses:
        """Derive the passes. `engine_is_trainer`: the engine samples from the live weights in the trainer's arithmetic.

        Values come from the update where there is one optimizer step, at the weights before it, and the credit reads
        one row at a time.
        """
        old: Literal["current", "engine", "pass"] = "current"
        if kl.in_reward or (algorithm.needs_old and not update.on_policy):
            old = "engine" if engine_is_trainer else "pass"
        values: Literal["none", "critic", "policy", "update"] = "none"
        if algorithm.needs_critic:
            values = "policy" if critic.on_policy_model else "critic"
            by_row = algorithm.credit_by_row and not algorithm.options.standardise
            if values == "policy" and by_row and update.on_policy and not kl.in_reward:
                values = "update"
        return cls(kl.coefficient > 0, old, values)

    @property
    def of_policy(self) -> int:
        """Passes of the policy or its reference in a step."""
        return self.reference + (self.old == "pass" or self.values == "policy")


@dataclass(frozen=True)
class ResolvedRecipe:
    """A recipe that was checked whole. Sections are as written, with defaults and what one inherits from another."""

    run: RunSection
    model: Model
    data: Data
    rollout: RolloutSection
    rewards: list[RewardSpec]
    algorithm: BoundAlgorithm = field(compare=False)  # with its options
    kl: KL
    critic: Critic
    optimizer: Optimizer
    update: Update
    eval: Eval
    log: Log
    checkpoint: Checkpoint
    launch: Launch
    passes: ScoringPasses
    written: Recipe  # the same keys as plain sections: what config.yaml holds

    @classmethod
    def of(cls, written: Recipe, algorithm: BoundAlgorithm, launch: Launch) -> ResolvedRecipe:
        """Resolve a recipe whose keys have been found to fit together."""
        written = _with_options_written_out(written, algorithm)
        sections: dict[str, Any] = {name: getattr(written, name) for name in Recipe.model_fields if name != "algorithm"}
        passes = ScoringPasses.of(
            algorithm,
            written.kl,
            written.update,
            written.critic,
            engine_is_trainer=samples_as_trainer(written),
        )
        return cls(**sections, algorithm=algorithm, launch=launch, passes=passes, written=written)

    def changed(self, **sections: Any) -> ResolvedRecipe:
        """Return the recipe with other sections, as a command needs it for its own run; keys are not checked again."""
        return self.of(self.written.model_copy(update=sections), self.algorithm, self.launch)

    @property
    def optimizer_steps(self) -> int:
        """Of the policy, in the whole run."""
        return (self.run.steps - self.critic.warmup) * self.update.epochs * self.update.minibatches


def _with_options_written_out(written: Recipe, algorithm: BoundAlgorithm) -> Recipe:
    """Return the recipe with every option of its algorithm, and the cap that overlap needs."""
    options = algorithm.options.model_dump(mode="json")
    section = written.algorithm.model_copy(update={"options": options})
    update = written.update
    if written.rollout.overlap and update.mismatch.cap is None:
        mismatch = update.mismatch.model_copy(update={"cap": OVERLAP_CAP})
        update = update.model_copy(update={"mismatch": mismatch})
    return written.model_copy(update={"algorithm": section, "update": update})
