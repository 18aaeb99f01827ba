"""Keys that do nothing under the other keys of a recipe: an error when given, left out of a dump.

A key counts as given when the recipe names it, even with its default value; null takes it back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeGuard

from pydantic import BaseModel

from rlhf_pg.algorithms.base import Algorithm, resolve
from rlhf_pg.tasks import base as tasks

if TYPE_CHECKING:
    from rlhf_pg.config.recipe import DataSource, Recipe, SftRecipe

IDLE_IN_SFT = (
    "run.steps",
    "run.preflight",
    "run.deadline_s",
    "model.lora",
    "model.quantize",
    "model.gradient_checkpointing",
    "data.eval",
    "log.trackers",
    "log.samples",
)


def is_training(recipe: Recipe | SftRecipe) -> TypeGuard[Recipe]:
    """Whether this is a recipe for reinforcement learning, not for `rlhf-pg sft`."""
    return "algorithm" in type(recipe).model_fields


def without_effect(recipe: Recipe | SftRecipe) -> Iterator[tuple[str, str]]:
    """(dotted key, when it has no effect) for each idle key, given or not. Every such key has a default."""
    yield from _of_sources(recipe)
    if not recipe.log.trackers:
        yield "log.project", "without log.trackers"
    yield from _of_training(recipe) if is_training(recipe) else _of_sft()


def given_without_effect(recipe: Recipe | SftRecipe) -> Iterator[str]:
    """One line per idle key that the recipe names."""
    for key, when in without_effect(recipe):
        if _is_given(recipe, key):
            yield f"{key}: has no effect {when}: remove it or set it to null"


def sources(recipe: Recipe | SftRecipe) -> Iterator[tuple[str, DataSource]]:
    """("data.train", its source), and data.eval if there is one."""
    yield "data.train", recipe.data.train
    if recipe.data.eval is not None:
        yield "data.eval", recipe.data.eval


def is_generated(task: str | None) -> bool:
    """Whether a task makes its own rows. False for a task that cannot be found: that is reported elsewhere."""
    if task is None:
        return False
    try:
        return tasks.resolve(task).problems is not None
    except ValueError:
        return False


def algorithm_of(recipe: Recipe) -> Algorithm | None:
    """The record, settled for the recipe's options. None if either is wrong: that is reported elsewhere."""
    try:
        algorithm = resolve(recipe.algorithm.name)
        return algorithm.settled(algorithm.options.model_validate(recipe.algorithm.options))
    except Exception:  # a plugin's import may raise anything
        return None


def _of_training(recipe: Recipe) -> Iterator[tuple[str, str]]:
    algorithm = algorithm_of(recipe)
    if recipe.kl.coefficient == 0:
        for leaf in ("estimator", "placement"):
            yield f"kl.{leaf}", "while kl.coefficient is 0"
    if recipe.kl.target is None:
        yield "kl.horizon", "without kl.target"
    if algorithm and algorithm.update == "trust_region":
        for leaf in type(recipe.optimizer).model_fields:
            yield f"optimizer.{leaf}", f"in {algorithm.name}, whose step comes from its trust region"
        for leaf in ("epochs", "minibatches"):
            yield f"update.{leaf}", f"in {algorithm.name}, which takes one step per rollout"
        yield "update.max_kl", f"in {algorithm.name}: its bound is algorithm.options.max_kl"
    elif recipe.update.on_policy:
        yield "update.max_kl", "with one optimizer step per rollout"
    rollout = recipe.rollout
    apart = rollout.overlap or rollout.server is not None
    if rollout.engine == "native" and recipe.model.dtype == "float32" and not apart:
        yield "update.importance_cap", "with rollout.engine=native in float32, whose log-probs are the trainer's own"
    if rollout.overlap is False and recipe.update.importance_cap is None:
        yield "update.importance", "without update.importance_cap"
    if algorithm:
        yield from _of_critic(recipe, algorithm)
    if recipe.data.eval is None:
        for leaf in type(recipe.eval).model_fields:
            yield f"eval.{leaf}", "without data.eval"
    if not recipe.checkpoint.every:
        yield "checkpoint.keep", "without checkpoint.every"


def _of_critic(recipe: Recipe, algorithm: Algorithm) -> Iterator[tuple[str, str]]:
    critic = recipe.critic
    if not algorithm.needs_critic:
        for leaf in type(critic).model_fields:
            if leaf != "optimizer":
                yield f"critic.{leaf}", f"without a critic: {algorithm.name} with these options has none"
        for leaf in type(critic.optimizer).model_fields:
            yield f"critic.optimizer.{leaf}", f"without a critic: {algorithm.name} with these options has none"
        return
    shared = critic.backbone == "policy"
    if shared:
        for leaf in ("epochs", "minibatches", "warmup"):
            yield f"critic.{leaf}", "with critic.backbone=policy, which learns in the policy's own optimizer steps"
    else:
        yield "critic.coefficient", "for a critic that does not share the policy's backbone"
    steps = recipe.update if shared else critic
    if steps.epochs * steps.minibatches == 1:
        yield "critic.clip", "with one optimizer step per rollout, taken at the values it is clipped to"


def _of_sft() -> Iterator[tuple[str, str]]:
    for key in IDLE_IN_SFT:
        yield key, "in `rlhf-pg sft`"


def _of_sources(recipe: Recipe | SftRecipe) -> Iterator[tuple[str, str]]:
    for name, source in sources(recipe):
        from_file = source.path is not None
        if source.dataset is None and (from_file or is_generated(source.task)):
            yield f"{name}.subset", f"without {name}.dataset"
        if from_file:
            yield f"{name}.split", f"with {name}.path, whose rows are all used"
        if from_file or source.dataset is not None or not is_generated(source.task):
            yield f"{name}.options", "unless a generated task makes the rows"


def _is_given(recipe: BaseModel, key: str) -> bool:
    here = recipe
    *above, leaf = key.split(".")
    for part in above:
        if part not in here.model_fields_set:
            return False
        here = getattr(here, part)
    return leaf in here.model_fields_set
