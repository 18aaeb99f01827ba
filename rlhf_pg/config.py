"""The recipe schema: strict, small, and free of torch, so that a wrong key fails in a second, before any model is loaded.

A recipe is YAML. `base: other.yaml` starts from another recipe; `section.key=value` on the command line overrides.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Run(Section):
    dir: Path
    seed: int = 0
    steps: int = Field(100, ge=0)  # rollout steps; 0 = only measure
    resume: Literal["never", "auto", "must"] = "never"  # auto: continue if a checkpoint is there
    preflight: bool = True


class Lora(Section):
    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: str | list[str] = "all-linear"


class Model(Section):
    path: str  # a folder, a hub name, or "tiny": the embedded Qwen2-architecture model, random weights
    tokenizer: str | None = None  # default: the model's
    dtype: Literal["float32", "bfloat16"] = "float32"
    lora: Lora | None = None
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    gradient_checkpointing: bool = False
    trust_remote_code: bool = False


class DataSource(Section):
    """Where problems come from: exactly one of a built-in task, a local .jsonl/.json/.parquet file, or a hub data set."""

    task: str | None = None  # "arithmetic", "countdown", "gsm8k", "math"
    path: Path | None = None
    dataset: str | None = None  # "openai/gsm8k"
    subset: str | None = None
    split: str | None = None  # of a hub data set, or of a generated task ("train", "heldout")
    prompt: str | None = None  # column with the problem; default: the task's
    answer: str | None = None  # column with the gold answer; default: the task's
    template: str | None = (
        None  # "auto" (chat template if the tokenizer has one, else r1), "chat", "r1", "plain", or text with {prompt}
    )
    limit: int | None = Field(None, ge=1)  # first so many rows
    options: dict[str, Any] = {}  # of a generated task: its difficulty


class Data(Section):
    train: DataSource
    eval: DataSource | None = None
    max_prompt_tokens: int = Field(1024, ge=1)  # longer prompts are dropped at the start and counted


class RolloutSection(Section):
    engine: str = "native"
    prompts_per_step: int = Field(32, ge=1)
    samples_per_prompt: int = Field(8, ge=1)
    max_new_tokens: int = Field(256, ge=1)
    temperature: float = Field(1.0, gt=0)
    slots: int = Field(256, ge=1)  # rows decoded at once: bounds the memory of the cache


class RewardSpec(Section):
    fn: str  # shipped name, file.py:function, dotted.path:function, or entry point of group rlhf_pg.rewards
    weight: float = 1.0
    timeout_s: float = Field(10.0, gt=0)  # per sample; per batch for functions of `completions`


class AlgorithmSection(Section):
    name: str = "grpo"
    options: dict[str, Any] = {}


class KL(Section):
    coefficient: float = Field(0.04, ge=0)
    placement: Literal["loss", "reward"] = "loss"
    estimator: Literal["k1", "k2", "k3"] = "k3"


class Optimizer(Section):
    lr: float = Field(1e-6, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    grad_clip: float = Field(1.0, gt=0)  # global norm
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = Field(0, ge=0)  # optimizer steps


class Update(Section):
    epochs: int = Field(1, ge=1)
    minibatches: int = Field(1, ge=1)  # optimizer steps per epoch
    tokens_per_microbatch: int = Field(
        16384, ge=1
    )  # prompt and completion positions forwarded at once; cannot change results
    share_prompts: bool = True  # forward each prompt once per group; cannot change results


class Eval(Section):
    every: int = Field(0, ge=0)  # rollout steps between evaluations; 0 = only before and after
    samples: int = Field(8, ge=1)
    k: list[int] = [1, 8]
    greedy: bool = True
    temperature: float = Field(1.0, gt=0)
    max_new_tokens: int | None = Field(None, ge=1)  # default: rollout.max_new_tokens


class Log(Section):
    trackers: list[Literal["tensorboard", "wandb"]] = []
    project: str = "rlhf_pg"
    samples: int = Field(8, ge=0)  # rollouts written to rollouts/ per step
    live: Literal["auto", "on", "off"] = "auto"


class Checkpoint(Section):
    every: int = Field(0, ge=0)  # rollout steps; 0 = only at the end and on SIGTERM
    keep: int = Field(2, ge=1)


class Recipe(Section):
    """Everything `rlhf-pg train`, `eval` and `check` need."""

    run: Run
    model: Model
    data: Data
    rollout: RolloutSection = RolloutSection()
    rewards: list[RewardSpec] = Field(min_length=1)
    algorithm: AlgorithmSection = AlgorithmSection()
    kl: KL = KL()
    optimizer: Optimizer = Optimizer()
    update: Update = Update()
    eval: Eval = Eval()
    log: Log = Log()
    checkpoint: Checkpoint = Checkpoint()


class Sft(Section):
    epochs: int = Field(1, ge=1)
    batch_size: int = Field(32, ge=1)
    completion: str | None = None  # column with the text to imitate; default: the task's worked solution


class SftRecipe(Section):
    """Everything `rlhf-pg sft` needs. Writes `run.dir`/model."""

    run: Run
    model: Model
    data: Data
    sft: Sft = Sft()
    optimizer: Optimizer = Optimizer(lr=1e-5)
    log: Log = Log()
