"""What cannot be: keys against each other, against the files they name, the algorithm and the launch. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from rlhf_pg.algorithms.base import BoundAlgorithm, resolve
from rlhf_pg.config import messages, places
from rlhf_pg.config.launch import Launch
from rlhf_pg.config.recipe import AlgorithmSection, DataSource, Recipe, SftRecipe, is_generated, sources
from rlhf_pg.data.files import files_of, splits_of
from rlhf_pg.names import nearest, nearest_file, nearest_model
from rlhf_pg.rewards import plugin
from rlhf_pg.rollout.engine import OPTIONS, SHIPPED
from rlhf_pg.tasks import base as tasks

MODEL_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "adapter_config.json")  # in a model's folder


def of_recipe(recipe: Recipe, algorithm: BoundAlgorithm | None) -> Iterator[str]:
    """Say, a line each, which keys contradict each other. `algorithm` None: that has been reported."""
    if algorithm:
        yield from _algorithm(recipe, algorithm)
    for part in (_engine, _kl, _update, _model, _evaluation, _rewards):
        yield from part(recipe)


def of_places(recipe: Recipe | SftRecipe, makes_model: bool = False) -> Iterator[str]:
    """Say, a line each, what folder, file or data source is missing or ambiguous.

    `makes_model`: where `model.path` is missing, `run.cold_start` is run first.
    """
    if recipe.run.cold_start is None or not places.is_missing_folder(recipe.model.path):
        yield from _missing_model("model.path", recipe.model.path)
    elif not makes_model:
        yield f"model.path: no folder {recipe.model.path}; rlhf-pg sft {recipe.run.cold_start} makes it"
    elif Path(recipe.model.path).name != "model":
        yield f"model.path: no folder {recipe.model.path}; one that run.cold_start makes is called .../model"
    if recipe.model.tokenizer is not None:
        yield from _missing_model("model.tokenizer", recipe.model.tokenizer)
    if recipe.run.dir.exists() and not recipe.run.dir.is_dir():
        yield f"run.dir: {recipe.run.dir} is a file; a run needs a folder of its own"
    for name, source in sources(recipe):
        yield from _source(name, source)


def of_launch(recipe: Recipe, algorithm: BoundAlgorithm, launch: Launch) -> Iterator[str]:
    """Say, a line each, what this recipe asks for and these processes cannot do."""
    if launch.processes > 1:
        if recipe.rollout.overlap:
            yield "rollout.overlap: samples beside one process that trains: leave it out, or start one process"
        if recipe.rollout.server is not None:
            yield "rollout.server: a server serves one process that trains; leave it out, or start one process"
        if recipe.rollout.engine == "vllm":
            yield (
                "rollout.engine: vllm's process group stands in the way of several training processes'; use native, or "
                "start one process"
            )
    if not launch.deepspeed:
        return
    if algorithm.update == "trust_region":
        yield (
            f"algorithm.name: {algorithm.name} makes its own step from full gradients and weights, which DeepSpeed "
            "keeps in its own flat, sharded buffers; start it on one process or with DDP"
        )
    if recipe.update.max_kl is not None:
        yield "update.max_kl: leaves gradients behind that DeepSpeed would step with: leave it out, or use DDP"
    if algorithm.needs_critic and recipe.critic.on_policy_model:
        yield "critic.backbone: policy gives one model two optimizers, and DeepSpeed knows one: use copy, or DDP"
    if recipe.model.quantize:
        yield "model.quantize: keeps weights that DeepSpeed cannot shard: leave it out, or use DDP"
    if recipe.model.lora and launch.shards_weights:
        yield "model.lora: with ZeRO-3 an adapter cannot be merged for the export: use ZeRO-1, ZeRO-2 or DDP"


def bind_algorithm(section: AlgorithmSection) -> tuple[BoundAlgorithm | None, list[str]]:
    """Find the algorithm of a recipe and fix its options: (algorithm, []), or (None, what is wrong, a line each)."""
    try:
        algorithm = resolve(section.name)
    except Exception as error:  # a plugin's import may raise anything
        kind = "" if isinstance(error, ValueError) else f"cannot be loaded: {type(error).__name__}: "
        return None, [f"algorithm.name: {kind}{error}"]
    problems = [
        f"algorithm.options.{name}: must be a number, is nan"
        for name, value in section.options.items()
        if isinstance(value, float) and math.isnan(value)
    ]
    try:
        return algorithm.bind(section.options), problems
    except ValidationError as error:
        return None, problems + messages.explain(error, algorithm.options, "algorithm.options.")


def _algorithm(recipe: Recipe, algorithm: BoundAlgorithm) -> Iterator[str]:
    """Say what the algorithm, with its options, asks of the other sections."""
    samples, minimum = recipe.rollout.samples_per_prompt, algorithm.min_group
    if samples < minimum:
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


def _critic(recipe: Recipe, algorithm: BoundAlgorithm) -> Iterator[str]:
    critic = recipe.critic
    if algorithm.update == "trust_region" and critic.on_policy_model:
        yield (
            f"critic.backbone: policy cannot be combined with {algorithm.name}: a value loss through the shared model "
            "would move the policy outside its trust region; use copy, or a folder"
        )
    yield from _missing_model("critic.backbone", critic.backbone)
    hint = nearest(critic.backbone, ["copy", "policy"])
    if critic.backbone not in ("copy", "policy") and hint and not Path(critic.backbone).is_dir():
        yield f"critic.backbone: no model {critic.backbone!r}{hint}"
    prompts = recipe.rollout.prompts_per_step
    if not critic.on_policy_model and critic.minibatches > prompts:
        yield f"critic.minibatches: {critic.minibatches} cannot share out rollout.prompts_per_step={prompts} prompts"
    if recipe.run.steps and critic.warmup >= recipe.run.steps:
        yield f"critic.warmup: {critic.warmup} of run.steps={recipe.run.steps} steps would leave none for the policy"


def _engine(recipe: Recipe) -> Iterator[str]:
    name = recipe.rollout.engine
    if name not in SHIPPED and ":" not in name and "." not in name:
        hint = nearest(name, list(SHIPPED))
        yield f"rollout.engine: no engine {name!r}: shipped are {', '.join(SHIPPED)}{hint}, or give module:attribute"
    if recipe.rollout.overlap and name == "scripted":
        yield "rollout.overlap: scripted plays what it is given and samples from no weights; use another engine"
    for option in recipe.rollout.options:
        if name in OPTIONS and option not in OPTIONS[name]:
            hint = nearest(option, OPTIONS[name])
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
        first = seen.setdefault(reward.fn, index)
        if first != index and reward.name == recipe.rewards[first].name:
            yield (
                f"rewards.{index}.fn: {reward.fn!r} is already rewards.{first}.fn; to use it twice, with other args, "
                f"give this one a name of its own: rewards.{index}.name"
            )
        yield from (f"rewards.{index}.fn: {text}" for text in _reward_function(reward.fn))
    if all(reward.weight == 0 for reward in recipe.rewards):
        yield "rewards: every weight is 0, so nothing is rewarded"


def _reward_function(fn: str) -> Iterator[str]:
    """Say what is wrong with a reward function, as far as can be seen without importing it."""
    try:
        plugin.locate(fn)
    except ValueError as error:
        yield str(error)


def _source(name: str, source: DataSource) -> Iterator[str]:
    if source.task is not None:
        yield from _task(name, source)
    if source.path is not None and source.dataset is not None:
        yield f"{name}: has both path and dataset; give one"
    elif source.path is None and source.dataset is None and source.task is None:
        yield f"{name}: says not where rows come from; give task, path or dataset"
    if source.path is not None:
        yield from _files(name, source)
    if source.template not in (None, "auto", "chat"):
        if source.template_options:
            yield f"{name}.template_options: variables of a chat template, and {name}.template is {source.template!r}"
        if source.instruction is not None:
            yield f"{name}.instruction: a turn of a chat template, and {name}.template is {source.template!r}"


def _files(name: str, source: DataSource) -> Iterator[str]:
    """Say what is wrong with the files of a source, and with the split of data sets that were saved with several."""
    try:
        files = files_of(source.path or [])
    except ValueError as error:
        yield f"{name}.path: {error}"
        return
    for folder in files:
        splits = splits_of(folder)
        if splits and source.split is None and (name == "data.eval" or "train" not in splits):
            yield f"{name}.split: name one of the splits of {folder}: {', '.join(splits)}"
        elif splits and source.split not in (None, *splits):
            hint = nearest(source.split or "", splits)
            yield f"{name}.split: no split {source.split!r} in {folder}; it has {', '.join(splits)}{hint}"


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


def _missing_model(key: str, path: str) -> Iterator[str]:
    """Say so if a model path can only be a file or folder and is not there, or is a run and not the model in it.

    A hub name is `name` or `owner/name`; whether there is such a model, `hub` asks.
    """
    folder = Path(path)
    if path.lower().endswith(".gguf"):
        if not folder.is_file():
            yield f"{key}: no file {path}{nearest_file(folder)}"
    elif places.is_missing_folder(path):
        yield f"{key}: no folder {path}{nearest_model(path)}"
    elif (folder / "model" / "config.json").is_file() and not any((folder / f).is_file() for f in MODEL_FILES):
        yield f"{key}: {path} is a run's folder, not a model's{nearest_model(path)}"
