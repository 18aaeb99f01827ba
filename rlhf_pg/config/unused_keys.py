"""Keys that do nothing under the other keys of a recipe: an error when given, left out of a dump.

A key counts as given when the recipe names it, even with its default value; null takes it back.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel

from rlhf_pg.algorithms.base import BoundAlgorithm
from rlhf_pg.config.recipe import DataSource, Log, Recipe, SftRecipe, is_generated, samples_as_trainer, sources
from rlhf_pg.data.files import files_of, splits_of

IDLE_IN_SFT = (
    "run.steps",
    "run.cold_start",
    "run.preflight",
    "run.timeout_s",
    "model.lora",
    "model.quantize",
    "model.gradient_checkpointing",
    "data.eval",
    "log.trackers",
    "log.samples",
)


def without_effect(recipe: Recipe | SftRecipe, algorithm: BoundAlgorithm | None) -> Iterator[tuple[str, str]]:
    """Yield (dotted key, when it has no effect) for each idle key, written or not. Every such key has a default.

    `algorithm` None: it is not known, and no key is idle because of it.
    """
    yield from _of_sources(recipe)
    yield from _of_trackers(recipe.log)
    if isinstance(recipe, SftRecipe):
        yield from ((key, "in `rlhf-pg sft`") for key in IDLE_IN_SFT)
    else:
        yield from _of_training(recipe, algorithm)


def written_without_effect(recipe: Recipe | SftRecipe, algorithm: BoundAlgorithm | None) -> Iterator[str]:
    """Say, a line each, which idle keys a recipe names."""
    for key, when in without_effect(recipe, algorithm):
        if _is_written(recipe, key):
            yield f"{key}: has no effect {when}: remove it or set it to null"


def _of_training(recipe: Recipe, algorithm: BoundAlgorithm | None) -> Iterator[tuple[str, str]]:
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
    if samples_as_trainer(recipe):
        yield "update.mismatch.cap", "with rollout.engine=native in float32, whose log-probs are the trainer's own"
    if not recipe.rollout.overlap and recipe.update.mismatch.cap is None:
        yield "update.mismatch.beyond", "without update.mismatch.cap"
    if recipe.update.mismatch.limit is None:
        yield "update.mismatch.action", "without update.mismatch.limit"
    if algorithm:
        yield from _of_critic(recipe, algorithm)
    if recipe.data.eval is None:
        for leaf in type(recipe.eval).model_fields:
            yield f"eval.{leaf}", "without data.eval"
    if not recipe.checkpoint.every:
        yield "checkpoint.keep", "without checkpoint.every"


def _of_trackers(log: Log) -> Iterator[tuple[str, str]]:
    named = {*log.trackers}
    if not named - {"tensorboard"}:
        yield "log.project", "without wandb, trackio or mlflow in log.trackers"
    if "wandb" not in named:
        yield "log.entity", "without wandb in log.trackers"
    if not named & {"wandb", "mlflow"}:
        yield "log.tags", "without wandb or mlflow in log.trackers"
    if not named:
        yield "log.names", "without log.trackers"


def _of_critic(recipe: Recipe, algorithm: BoundAlgorithm) -> Iterator[tuple[str, str]]:
    critic = recipe.critic
    if not algorithm.needs_critic:
        for leaf in type(critic).model_fields:
            if leaf != "optimizer":
                yield f"critic.{leaf}", f"without a critic: {algorithm.name} with these options has none"
        for leaf in type(critic.optimizer).model_fields:
            yield f"critic.optimizer.{leaf}", f"without a critic: {algorithm.name} with these options has none"
        return
    if critic.on_policy_model:
        for leaf in ("epochs", "minibatches", "warmup"):
            yield f"critic.{leaf}", "with critic.backbone=policy, which learns in the policy's own optimizer steps"
    else:
        yield "critic.coefficient", "for a critic that does not share the policy's backbone"
    steps = recipe.update if critic.on_policy_model else critic
    if steps.epochs * steps.minibatches == 1:
        yield "critic.clip", "with one optimizer step per rollout, taken at the values it is clipped to"


def _of_sources(recipe: Recipe | SftRecipe) -> Iterator[tuple[str, str]]:
    for name, source in sources(recipe):
        from_file = source.path is not None
        if source.dataset is None and (from_file or is_generated(source.task)):
            yield f"{name}.subset", f"without {name}.dataset"
        if from_file and not _has_splits(source):
            yield f"{name}.split", f"with {name}.path, whose rows are all used"
        if from_file or source.dataset is not None or not is_generated(source.task):
            yield f"{name}.options", "unless a generated task makes the rows"


def _has_splits(source: DataSource) -> bool:
    """Return whether a data set that was saved with its splits is among the files."""
    try:
        return any(splits_of(file) for file in files_of(source.path or []))
    except ValueError:  # which is reported elsewhere
        return True


def _is_written(recipe: BaseModel, key: str) -> bool:
    section = recipe
    *above, leaf = key.split(".")
    for name in above:
        if name not in section.model_fields_set:
            return False
        section = getattr(section, name)
    return leaf in section.model_fields_set
