"""The recipe schema: strict, small, and free of torch: a wrong key fails in a second, before any model loads.

A recipe is YAML. `base: other.yaml` starts from another recipe; `section.key=value` on the command line overrides;
a key set to null is as if it had not been given. docs/recipes.md lists every key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import getitem
from os.path import expanduser
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, overload

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from rlhf_pg.errors import RecipeError, RunError
from rlhf_pg.recipe import checks, effects, messages, reading

__all__ = ["Recipe", "RecipeError", "RunError", "SftRecipe", "dump", "load", "parse"]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _null_is_not_given(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return {key: value for key, value in values.items() if value is not None or key not in cls.model_fields}

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation in (int, float, int | None):
            raise ValueError(f"must be a number, is {value}")
        return value


Home = Annotated[Path, AfterValidator(Path.expanduser)]  # ~ is the home directory
HomeText = Annotated[str, AfterValidator(expanduser)]


class Run(Section):
    dir: Home = Field(description="run directory: config, metrics, checkpoints, report, final model")
    seed: int = Field(default=0, description="of every random stream: sampling, data order, initialisation")
    steps: int = Field(default=100, ge=0, description="rollout steps; 0 = only measure")
    resume: Literal["never", "auto", "must"] = Field(
        default="never", description="auto: continue if there is a checkpoint"
    )
    preflight: bool = Field(default=True, description="run the checks of `rlhf-pg check` before step 1")
    deadline_s: float = Field(
        default=1800.0, gt=0, description="the longest a process waits for the others before the run ends with an error"
    )


class Lora(Section):
    rank: int = Field(default=16, ge=1, description="rank of the adapter matrices")
    alpha: float = Field(default=32.0, gt=0, description="the adapter is scaled by alpha / rank")
    targets: str | list[str] = Field(default="all-linear", description="modules that get an adapter")


class Model(Section):
    path: HomeText = Field(
        description='a folder, a hub name, or "tiny": the embedded Qwen2-architecture model, random weights'
    )
    tokenizer: HomeText | None = Field(default=None, description="a folder or hub name; default: the model's")
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="of the arithmetic; weights stay float32"
    )
    lora: Lora | None = Field(default=None, description="train low-rank adapters instead of all weights")
    attention: Literal["sdpa", "eager", "flash_attention_2"] = Field(
        default="sdpa", description="how attention is computed"
    )
    gradient_checkpointing: bool = Field(default=False, description="recompute activations: less memory, slower")
    trust_remote_code: bool = Field(default=False, description="run code that comes with a model")


class DataSource(Section):
    """Where problems come from: a generated task, a local .jsonl/.json/.parquet file, or a hub data set."""

    task: str | None = Field(default=None, description="generated: arithmetic, countdown; row formats: gsm8k, math")
    path: Home | None = Field(default=None, description=".jsonl, .json or .parquet file")
    dataset: str | None = Field(default=None, description="hub data set, as in openai/gsm8k")
    subset: str | None = Field(default=None, description="of a hub data set")
    split: str | None = Field(default=None, description="of a hub data set, or of a generated task (train, heldout)")
    prompt: str | None = Field(default=None, description="column with the problem; default: the task's")
    answer: str | None = Field(default=None, description="column with the gold answer; default: the task's")
    template: str | None = Field(
        None,
        description="auto (chat if the tokenizer has a chat template, else r1), chat, r1, plain, or text with {prompt}",
    )
    limit: int | None = Field(default=None, ge=1, description="use only the first so many rows")
    options: dict[str, Any] = Field(default={}, description="of a generated task: its difficulty")


class Data(Section):
    train: DataSource = Field(description="problems to learn from")
    eval: DataSource | None = Field(default=None, description="held-out problems; absent = no evaluation")
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


class RewardSpec(Section):
    fn: str = Field(
        description="shipped name, file.py:function, dotted.path:function, or entry point of rlhf_pg.rewards"
    )
    weight: float = Field(default=1.0, description="the reward is the weighted sum; 0 = only logged")
    timeout_s: float = Field(default=10.0, gt=0, description="per sample; per batch for functions of `completions`")


class AlgorithmSection(Section):
    name: str = Field(default="grpo", description="shipped name, or module:attribute")
    options: dict[str, Any] = Field(
        default={}, description="the algorithm's own, see its file; filled with defaults on loading"
    )


class KL(Section):
    coefficient: float = Field(default=0.04, ge=0, description="weight of the KL to the reference; 0 = none")
    placement: Literal["loss", "reward"] = Field(default="loss", description="loss term, or reward penalty")
    estimator: Literal["k1", "k2", "k3", "k3_corrected"] = Field(
        default="k3",
        description="k1 only as a reward penalty; k3_corrected, only in the loss, has the reverse KL's gradient",
    )
    target: float | None = Field(
        default=None, gt=0, description="nats per token to steer kl/ref to, by adapting the coefficient"
    )
    horizon: int = Field(default=10_000, ge=1, description="samples over which the coefficient adapts")


class Optimizer(Section):
    lr: float = Field(default=1e-6, gt=0, description="AdamW learning rate at its highest")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        default=(0.9, 0.999), description="AdamW's decay of its two averages"
    )
    eps: float = Field(default=1e-8, gt=0, description="AdamW's")
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW's")
    grad_clip: float = Field(default=1.0, gt=0, description="largest global gradient norm")
    schedule: Literal["constant", "linear", "cosine"] = Field(default="constant", description="rate after warm-up")
    warmup_steps: int = Field(default=0, ge=0, description="optimizer steps with a rising rate")


class Mismatch(Section):
    """An alarm for rollouts that were not sampled from the policy that is trained."""

    limit: float = Field(default=0.01, gt=0, description="mismatch/kl, nats per token, that is still allowed")
    action: Literal["warn", "mask", "stop"] = Field(
        default="warn",
        description="above it: say so; leave out each row that is above it itself; or stop before learning from it",
    )


class Update(Section):
    epochs: int = Field(default=1, ge=1, description="passes over each rollout step's rows")
    minibatches: int = Field(default=1, ge=1, description="optimizer steps per epoch")
    tokens_per_microbatch: int | None = Field(
        default=None,
        ge=1,
        description="positions forwarded at once, cannot change results; default: 16,384 on a GPU, 256 MB's on a CPU",
    )
    share_prompts: bool = Field(default=True, description="forward each prompt once per group; cannot change results")
    max_kl: float | None = Field(
        default=None, gt=0, description="stop the step's updates at this KL(old || new), nats per token"
    )
    importance_cap: float | None = Field(
        default=None,
        ge=1,
        description="weigh each token's loss by trainer / engine probability, at most this; default: 2 with overlap",
    )
    importance: Literal["truncate", "mask"] = Field(
        default="truncate",
        description="weights beyond importance_cap are cut to it, or leave their token out (below 1 / cap too)",
    )
    mismatch: Mismatch | None = Field(default=None, description="an alarm for rollouts of another policy")

    def budget(self, device: str) -> int:
        """`tokens_per_microbatch` on a kind of device ("cpu", "cuda"): a CPU gains nothing from more than its caches
        hold, and keeps their activations in less memory."""
        return self.tokens_per_microbatch or (2048 if device == "cpu" else 16384)

    @property
    def on_policy(self) -> bool:
        """Whether a rollout has one optimizer step: logp_old, of the weights before the update, is then logp."""
        return self.epochs * self.minibatches == 1


class CriticOptimizer(Optimizer):
    lr: float = Field(default=1e-5, gt=0, description="AdamW learning rate at its highest")


class Critic(Section):
    """The value network of algorithms that have one."""

    backbone: HomeText = Field(
        default="copy",
        description="copy: a second model from model.path; policy: a value head on the policy; or a folder or hub name",
    )
    epochs: int = Field(default=1, ge=1, description="passes over each rollout step's rows; not for backbone policy")
    minibatches: int = Field(default=1, ge=1, description="optimizer steps per epoch; not for backbone policy")
    coefficient: float = Field(
        default=0.5, ge=0, description="of the value loss in a shared backbone; 0 trains the head alone"
    )
    clip: float | None = Field(
        default=None, gt=0, description="PPO's option: no gradient moves a value further than this in one rollout step"
    )
    warmup: int = Field(default=0, ge=0, description="rollout steps at the start on which only the critic learns")
    optimizer: CriticOptimizer = CriticOptimizer()


class Eval(Section):
    every: int = Field(default=0, ge=0, description="rollout steps between evaluations; 0 = only before and after")
    samples: int = Field(default=8, ge=1, description="completions per held-out problem")
    k: list[Annotated[int, Field(ge=1)]] = Field(default=[1, 8], min_length=1, description="report pass@k for these")
    greedy: bool = Field(default=True, description="also measure the most likely completion")
    temperature: float = Field(default=1.0, gt=0, description="of the sampled completions")
    max_new_tokens: int | None = Field(default=None, ge=1, description="default: rollout.max_new_tokens")


class Log(Section):
    trackers: list[Literal["tensorboard", "wandb"]] = Field(default=[], description="besides metrics.jsonl")
    project: str = Field(default="rlhf_pg", description="name the trackers file the run under")
    samples: int = Field(default=8, ge=0, description="rollouts written to rollouts/ per step")
    live: Literal["auto", "on", "off"] = Field(default="auto", description="live view; auto: in a terminal")


class Checkpoint(Section):
    every: int = Field(default=0, ge=0, description="rollout steps; 0 = only at the end and on SIGTERM")
    keep: int = Field(default=2, ge=1, description="newest so many stay")


class Recipe(Section):
    """Everything `rlhf-pg train`, `eval` and `check` need."""

    run: Run
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


class Sft(Section):
    epochs: int = Field(default=1, ge=1, description="passes over the data")
    batch_size: int = Field(default=32, ge=1, description="rows per optimizer step")
    completion: str | None = Field(
        default=None, description="column with the text to imitate; default: the task's worked solution"
    )


class SftOptimizer(Optimizer):
    lr: float = Field(default=1e-5, gt=0, description="AdamW learning rate at its highest")


class SftRecipe(Section):
    """Everything `rlhf-pg sft` needs. Writes `run.dir`/model."""

    run: Run
    model: Model
    data: Data
    sft: Sft = Sft()
    optimizer: SftOptimizer = SftOptimizer()
    log: Log = Log()


S = TypeVar("S", bound=Recipe | SftRecipe)


@overload
def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe: ...
@overload
def load(path: str | Path, overrides: Sequence[str], schema: type[S]) -> S: ...
def load(path: str | Path, overrides: Sequence[str] = (), schema: type[Recipe] | type[SftRecipe] = Recipe):
    """Read, merge, override and check a recipe: YAML file `path`, then each "section.key=value".

    Paths inside a recipe are relative to the current directory, except `base`, which is relative to its file.
    Raises RecipeError listing every problem found, one line each.
    """
    return parse(reading.read(Path(path), overrides), schema, str(path))


def parse(mapping: Mapping[str, Any], schema: type[S], source: str = "recipe") -> S:
    """A checked recipe from plain values. Raises RecipeError, its first line opening with `source`."""
    try:
        recipe = schema.model_validate(mapping)
    except ValidationError as error:
        raise RecipeError(source, messages.explain(error, schema)) from None
    problems = checks.problems(recipe)
    if problems:
        raise RecipeError(source, problems)
    return checks.with_options_filled(recipe) if isinstance(recipe, Recipe) else recipe


def dump(recipe: Recipe | SftRecipe) -> str:
    """The resolved recipe as YAML: every key but those without effect. Loads back to an equal one."""
    mapping = recipe.model_dump(mode="json")
    for key, _ in effects.without_effect(recipe):
        *above, leaf = key.split(".")
        del reduce(getitem, above, mapping)[leaf]
        while above and not reduce(getitem, above, mapping):
            *above, leaf = above
            del reduce(getitem, above, mapping)[leaf]
    return reading.write(mapping)
