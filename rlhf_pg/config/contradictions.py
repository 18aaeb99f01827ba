"""Keys against each other, against the files they name, and against the algorithm. Imports no torch."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ValidationError

from rlhf_pg.algorithms.base import Algorithm, resolve
from rlhf_pg.config import messages
from rlhf_pg.config.unused_keys import given_without_effect, is_generated, is_training, sources
from rlhf_pg.rewards import plugin
from rlhf_pg.rollout.engine import OPTIONS, SHIPPED
from rlhf_pg.tasks import base as tasks

if TYPE_CHECKING:
    from rlhf_pg.config.recipe import DataSource, Recipe, SftRecipe

OVERLAP_CAP = 2.0  # of importance weights one step old: Yao et al. 2025's, see functional/importance.py


def problems(recipe: Recipe | SftRecipe) -> list[str]:
    """One line per contradiction, missing file, or given key without effect."""
    found = [*_places(recipe), *given_without_effect(recipe)]
    for name, source in sources(recipe):
        found += _source(name, source)
    if is_training(recipe):
        for part in (_algorithm, _engine, _kl, _update, _model, _evaluation, _rewards):
            found += part(recipe)
    return found


def with_options_filled(recipe: Recipe) -> Recipe:
    """The recipe with every option of its algorithm, and the cap that overlap needs, written out: what will run."""
    schema = resolve(recipe.algorithm.name).options
    options = schema.model_validate(recipe.algorithm.options).model_dump(mode="json")
    filled: dict[str, BaseModel] = {"algorithm": recipe.algorithm.model_copy(update={"options": options})}
    if recipe.rollout.overlap and recipe.update.importance_cap is None:
        filled["update"] = recipe.update.model_copy(update={"importance_cap": OVERLAP_CAP})
    return recipe.model_copy(update=filled)


def _algorithm(recipe: Recipe) -> Iterator[str]:
    try:
        algorithm = resolve(recipe.algorithm.name)
    except Exception as error:  # a plugin's import may raise anything
        kind = "" if isinstance(error, ValueError) else f"cannot be loaded: {type(error).__name__}: "
        yield f"algorithm.name: {kind}{error}"
        return
    for name, value in recipe.algorithm.options.items():
        if isinstance(value, float) and math.isnan(value):
            yield f"algorithm.options.{name}: must be a number, is nan"
    try:
        algorithm.options.model_validate(recipe.algorithm.options)
    except ValidationError as error:
        yield from messages.explain(error, algorithm.options, "algorithm.options.")
        return
    yield from _settled_algorithm(recipe, algorithm.settled(algorithm.options.model_validate(recipe.algorithm.options)))


def _settled_algorithm(recipe: Recipe, algorithm: Algorithm) -> Iterator[str]:
    """What the algorithm, with its options, asks of the other sections."""
    samples, minimum = recipe.rollout.samples_per_prompt, algorithm.min_group
    if samples < minimum:  # pyright: ignore[reportOperatorIssue]
        yield (
            f"rollout.samples_per_prompt: must be at least {minimum}, is {samples}: "
            f"{algorithm.name} compares the samples of one prompt"
        )
    if algorithm.update == "gradient" and not algorithm.needs_old and not recipe.update.on_policy:
        yield (
            f"update: epochs x minibatches is {recipe.update.epochs * recipe.update.minibatches}, but {algorithm.name} "
            "weighs no ratio to the policy that sampled: after one optimizer step per rollout its gradient is wrong. "
            "Use 1 x 1, or ppo or grpo"
        )
    if algorithm.update == "trust_region" and recipe.model.dtype != "float32":
        yield (
            f"model.dtype: {algorithm.name} takes finite differences of gradients, which {recipe.model.dtype} rounds "
            "away; use float32"
        )
    if algorithm.update == "trust_region" and recipe.rollout.overlap:
        yield (
            f"rollout.overlap: {algorithm.name} bounds the KL on the states that the policy itself visits, and "
            "overlapped rollouts are another policy's; leave it out, or use ppo or grpo"
        )
    if algorithm.needs_critic:
        yield from _critic(recipe, algorithm)


def _critic(recipe: Recipe, algorithm: Algorithm) -> Iterator[str]:
    critic = recipe.critic
    if algorithm.update == "trust_region" and critic.backbone == "policy":
        yield (
            f"critic.backbone: policy cannot be combined with {algorithm.name}: a value loss through the shared model "
            "would move the policy outside its trust region; use copy, or a folder"
        )
    if _is_folder_name(critic.backbone) and not Path(critic.backbone).is_dir():
        yield f"critic.backbone: no folder {critic.backbone}"
    hint = messages.nearest(critic.backbone, ["copy", "policy"])
    if critic.backbone not in ("copy", "policy") and hint and not Path(critic.backbone).is_dir():
        yield f"critic.backbone: no model {critic.backbone!r}{hint}"
    prompts = recipe.rollout.prompts_per_step
    if critic.backbone != "policy" and critic.minibatches > prompts:
        yield f"critic.minibatches: {critic.minibatches} cannot share out rollout.prompts_per_step={prompts} prompts"
    if recipe.run.steps and critic.warmup >= recipe.run.steps:
        yield f"critic.warmup: {critic.warmup} of run.steps={recipe.run.steps} steps would leave none for the policy"


def _engine(recipe: Recipe) -> Iterator[str]:
    name = recipe.rollout.engine
    if name not in SHIPPED and ":" not in name and "." not in name:
        hint = messages.nearest(name, list(SHIPPED))
        yield f"rollout.engine: no engine {name!r}: shipped are {', '.join(SHIPPED)}{hint}, or give module:attribute"
    if recipe.rollout.overlap and name == "scripted":
        yield "rollout.overlap: scripted plays what it is given and samples from no weights; use another engine"
    for option in recipe.rollout.options:
        if name in OPTIONS and option not in OPTIONS[name]:
            hint = messages.nearest(option, OPTIONS[name])
            yield f"rollout.options.{option}: rollout.engine={name} has no such option{hint}"
    if recipe.rollout.overlap and recipe.rollout.server is not None:
        yield "rollout.overlap: a server samples in a process of its own already; leave one out"
    if recipe.rollout.server is not None and name == "scripted":
        yield "rollout.server: scripted plays what it is given and samples from no weights; use another engine"
    if recipe.rollout.overlap and recipe.model.trust_remote_code:
        yield "rollout.overlap: code that comes with a model cannot be imported by the second process; leave one out"


def _kl(recipe: Recipe) -> Iterator[str]:
    kl = recipe.kl
    if kl.coefficient > 0 and (kl.placement, kl.estimator) == ("loss", "k1"):
        yield (
            "kl.estimator: k1 in the loss has zero expected gradient, so it would regularise nothing; "
            "use k3 or k2, or kl.placement=reward"
        )
    if kl.coefficient > 0 and (kl.placement, kl.estimator) == ("reward", "k3_corrected"):
        yield "kl.estimator: k3_corrected corrects a gradient, and a reward has none; use k1 with kl.placement=reward"
    rows = recipe.rollout.prompts_per_step * recipe.rollout.samples_per_prompt
    if kl.target is not None and kl.horizon <= rows // 5:
        yield (
            f"kl.horizon: {kl.horizon} with {rows} samples per step could take the coefficient below 0 in one step; "
            f"use at least {rows // 5 + 1}"
        )
    if kl.target is not None and kl.coefficient == 0:
        yield "kl.target: an adaptive coefficient needs one above 0 to start from; set kl.coefficient"


def _update(recipe: Recipe) -> Iterator[str]:
    update, prompts = recipe.update, recipe.rollout.prompts_per_step
    if update.minibatches > prompts:
        yield f"update.minibatches: {update.minibatches} cannot share out rollout.prompts_per_step={prompts} prompts"


def _model(recipe: Recipe) -> Iterator[str]:
    model = recipe.model
    if model.attention == "flash_attention_2" and model.dtype == "float32":
        yield "model.attention: flash_attention_2 has no float32 kernel; set model.dtype=bfloat16"
    if model.quantize and model.lora is None:
        yield f"model.quantize: weights in {model.quantize[0]} bits cannot be trained; add model.lora, or leave it out"
    if model.quantize and model.path == "tiny":
        yield "model.quantize: the embedded model has nothing to save; give model.path a folder or a hub name"
    if model.quantize and (recipe.rollout.engine != "native" or recipe.rollout.server):
        yield "model.quantize: only the native engine samples from such weights; set rollout.engine=native, no server"
    if model.quantize and recipe.rollout.overlap:
        yield "model.quantize: rollout.overlap shares plain weights with its second process; leave one of the two out"


def _evaluation(recipe: Recipe) -> Iterator[str]:
    if recipe.data.eval is None:
        return
    k, samples = recipe.eval.k, recipe.eval.samples
    if max(k) > samples:
        yield f"eval.k: pass@{max(k)} needs at least {max(k)} samples per problem, eval.samples is {samples}"
    if len(set(k)) < len(k):
        yield f"eval.k: {k} names the same k twice"


def _rewards(recipe: Recipe) -> Iterator[str]:
    seen: dict[str, int] = {}
    for index, reward in enumerate(recipe.rewards):
        if reward.fn in seen:
            yield f"rewards.{index}.fn: {reward.fn!r} is already rewards.{seen[reward.fn]}.fn"
        seen.setdefault(reward.fn, index)
        yield from (f"rewards.{index}.fn: {text}" for text in _reward_function(reward.fn))
    if all(reward.weight == 0 for reward in recipe.rewards):
        yield "rewards: every weight is 0, so nothing is rewarded"


def _reward_function(fn: str) -> Iterator[str]:
    """What can be said of a reward function without importing it."""
    head, _, _ = fn.partition(":")
    if head.endswith(".py") or "/" in head:
        if not Path(head).expanduser().is_file():
            yield f"no file {head} in {Path.cwd()}"
        return
    if "." in fn or ":" in fn:
        return
    known = plugin.shipped()
    if fn not in known:
        known += importlib.metadata.entry_points(group=plugin.ENTRY_POINTS).names
    if fn not in known:
        yield (
            f"no reward function {fn!r}: there are {', '.join(known)}{messages.nearest(fn, known)}, "
            "or give file.py:function or package.module:function"
        )


def _source(name: str, source: DataSource) -> Iterator[str]:
    if source.task is not None:
        yield from _task(name, source)
    if source.path is not None and source.dataset is not None:
        yield f"{name}: has both path and dataset; give one"
    elif source.path is None and source.dataset is None and source.task is None:
        yield f"{name}: says not where rows come from; give task, path or dataset"
    if source.path is not None and not source.path.is_file():
        yield f"{name}.path: no file {source.path}"


def _task(name: str, source: DataSource) -> Iterator[str]:
    try:
        task = tasks.resolve(source.task or "")
    except ValueError as error:
        yield f"{name}.task: {error}"
        return
    placed = source.path is not None or source.dataset is not None
    if is_generated(source.task):
        try:
            task.parse({} if placed else source.options)
        except ValueError as error:
            yield f"{name}.options: {error}"
    elif not placed and task.dataset is None:
        yield f"{name}: task {source.task!r} reads rows but has none of its own; give path or dataset"


def _places(recipe: Recipe | SftRecipe) -> Iterator[str]:
    for key, path in (("model.path", recipe.model.path), ("model.tokenizer", recipe.model.tokenizer)):
        if path is not None and _is_folder_name(path) and not Path(path).is_dir():
            yield f"{key}: no folder {path}"
    if recipe.run.dir.exists() and not recipe.run.dir.is_dir():
        yield f"run.dir: {recipe.run.dir} is a file; a run needs a folder of its own"


def _is_folder_name(path: str) -> bool:
    """Whether a model path can only be a folder: a hub name is `name` or `owner/name`."""
    return path.startswith((".", "/")) or path.count("/") > 1
