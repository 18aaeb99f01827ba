"""What a recipe amounts to, worked out before step 1: rows, optimizer steps, micro-batches, memory by part.

Upper bounds throughout: every completion as long as `rollout.max_new_tokens`, every prompt as long as the longest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, PretrainedConfig

from rlhf_pg.config import Lora, Recipe
from rlhf_pg.functional.logprobs import CHUNK_LOGITS
from rlhf_pg.models.load import add_adapter, load_config
from rlhf_pg.recipe.effects import algorithm_of

CPU_ACTIVATIONS = 256 * 2**20  # bytes of a micro-batch's activations on a CPU
FLOAT32 = 4  # bytes: weights, gradients and optimizer state are float32 whatever `model.dtype`
TRUST_REGION_VECTORS = 11  # flat copies alive at once: weights before, gradients, products, conjugate gradient's
LOGITS_COPIES = 3  # of a chunk at once: logits, log-softmax, its gradient


@dataclass(frozen=True)
class Plan:
    """The numbers of a run. Memory in bytes, of one process."""

    prompts: int  # N per rollout step
    samples: int  # G per prompt
    rollout_steps: int
    updates: int  # optimizer steps per rollout step
    micro_batches: int  # per optimizer step, at most
    parameters: int
    trainable: int
    max_new_tokens: int
    memory: dict[str, int]

    @property
    def rows(self) -> int:
        """B = N * G, per rollout step."""
        return self.prompts * self.samples

    @property
    def optimizer_steps(self) -> int:
        return self.rollout_steps * self.updates

    @property
    def total_samples(self) -> int:
        return self.rollout_steps * self.rows

    @property
    def total_tokens(self) -> int:
        """Sampled tokens, at most."""
        return self.total_samples * self.max_new_tokens


def plan(
    recipe: Recipe, model_config: PretrainedConfig, parameters: int | None = None, longest_prompt: int | None = None
) -> Plan:
    """The plan of a recipe for a model of `model_config`; loads nothing.

    `parameters`: the model's count if known, else it is built without storage. `longest_prompt`: in tokens; default
    `data.max_prompt_tokens`.
    """
    if parameters is None or recipe.model.lora:
        parameters, trainable = count_parameters(
            model_config, recipe.model.lora, trust_remote_code=recipe.model.trust_remote_code
        )
    else:
        trainable = parameters
    prompt = longest_prompt or recipe.data.max_prompt_tokens
    return Plan(
        prompts=recipe.rollout.prompts_per_step,
        samples=recipe.rollout.samples_per_prompt,
        rollout_steps=recipe.run.steps,
        updates=recipe.update.epochs * recipe.update.minibatches,
        micro_batches=micro_batches(recipe, prompt),
        parameters=parameters,
        trainable=trainable,
        max_new_tokens=recipe.rollout.max_new_tokens,
        memory=memory(recipe, model_config.get_text_config(), parameters, trainable, prompt),
    )


def show(plan: Plan, console: Console) -> None:
    """Print the plan as two small tables."""
    steps = Table(title="plan", title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    steps.add_row("rows per step", f"{plan.prompts:,} prompts x {plan.samples:,} samples = {plan.rows:,}")
    steps.add_row(
        "optimizer steps", f"{plan.rollout_steps:,} rollout steps x {plan.updates:,} = {plan.optimizer_steps:,}"
    )
    steps.add_row("micro-batches", f"at most {plan.micro_batches:,} per optimizer step")
    steps.add_row("samples in all", f"{plan.total_samples:,}, at most {count_text(plan.total_tokens)} tokens")
    trained = "all trained" if plan.trainable == plan.parameters else f"{count_text(plan.trainable)} trained"
    steps.add_row("parameters", f"{count_text(plan.parameters)}, {trained}")
    parts = Table(title="memory, estimated", title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, size in plan.memory.items():
        parts.add_row(name, bytes_text(size))
    parts.add_row("together, at most", bytes_text(sum(plan.memory.values())), style="bold")
    console.print(steps, parts, sep="\n")


def count_parameters(
    model_config: PretrainedConfig, lora: Lora | None = None, *, trust_remote_code: bool = False
) -> tuple[int, int]:
    """(all, trainable) parameters, tied ones once: the model is built on the meta device, which has no storage."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(model_config, trust_remote_code=trust_remote_code)
        if lora:
            model = add_adapter(model, lora)
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, _ in sizes), sum(n for n, trained in sizes if trained)


def largest_micro_batch(recipe: Recipe, prompt: int) -> tuple[int, int]:
    """(prompts, rows) of a full micro-batch, all rows as long as can be; groups are cut only when they must be."""
    update, samples, length = recipe.update, recipe.rollout.samples_per_prompt, recipe.rollout.max_new_tokens
    prompts = math.ceil(recipe.rollout.prompts_per_step / update.minibatches)
    groups = min(prompts, _budget(recipe) // (prompt + samples * length))
    if groups:
        return groups, groups * samples
    return 1, min(samples, max(1, (_budget(recipe) - prompt) // length))


def settled(recipe: Recipe, model_config: PretrainedConfig) -> Recipe:
    """The recipe with the micro-batch that suits model and device, where it names none.

    A CPU's products are as fast with a thousand rows as with more, so there it is by memory: CPU_ACTIVATIONS.
    """
    if recipe.update.tokens_per_microbatch is not None or torch.cuda.is_available():
        return recipe
    kept = activations_per_token(model_config.get_text_config(), recipe.model.gradient_checkpointing) * FLOAT32
    tokens = min(16384, max(512, CPU_ACTIVATIONS // kept))
    return recipe.model_copy(update={"update": recipe.update.model_copy(update={"tokens_per_microbatch": tokens})})


def _budget(recipe: Recipe) -> int:
    """Positions forwarded at once on the device there is."""
    return recipe.update.budget("cuda" if torch.cuda.is_available() else "cpu")


def micro_batches(recipe: Recipe, prompt: int) -> int:
    """Micro-batches per optimizer step, at most."""
    samples = recipe.rollout.samples_per_prompt
    prompts = math.ceil(recipe.rollout.prompts_per_step / recipe.update.minibatches)
    groups, rows = largest_micro_batch(recipe, prompt)
    return math.ceil(prompts / groups) if rows >= samples else prompts * math.ceil(samples / rows)


def forwarded_tokens(recipe: Recipe, prompt: int) -> int:
    """Positions of the largest micro-batch's forward: prompts once per group if shared, else once per row."""
    groups, rows = largest_micro_batch(recipe, prompt)
    return (groups if recipe.update.share_prompts else rows) * prompt + rows * recipe.rollout.max_new_tokens


def memory(recipe: Recipe, shape: PretrainedConfig, parameters: int, trainable: int, prompt: int) -> dict[str, int]:
    """Bytes by part. `shape` is the text model's configuration; parts of rollout and update are not alive together."""
    width = 2 if recipe.model.dtype == "bfloat16" else FLOAT32
    longest = prompt + recipe.rollout.max_new_tokens
    parts = {"weights": parameters * FLOAT32, "gradients": trainable * FLOAT32}
    algorithm = algorithm_of(recipe)
    if algorithm and algorithm.update == "trust_region":
        parts["trust region vectors"] = TRUST_REGION_VECTORS * trainable * FLOAT32
        rows = recipe.rollout.prompts_per_step * recipe.rollout.samples_per_prompt
        states = rows * recipe.rollout.max_new_tokens * shape.hidden_size  # pyright: ignore[reportAttributeAccessIssue]
        parts["trust region: old states"] = states * FLOAT32
    else:
        parts["Adam state"] = 2 * trainable * FLOAT32
    if algorithm and algorithm.needs_critic and recipe.critic.backbone != "policy":
        own, learned = _critic_parameters(recipe, parameters, trainable)
        parts["critic, its gradients and Adam state"] = (own + 3 * learned) * FLOAT32
    if recipe.kl.coefficient > 0 and not recipe.model.lora:
        parts["reference copy"] = parameters * FLOAT32
    if recipe.rollout.overlap:
        parts["second process: weights"] = parameters * FLOAT32
    if recipe.rollout.engine == "vllm" and recipe.rollout.server is None:
        parts["vLLM: weights"] = parameters * width
    slots = min(recipe.rollout.slots, recipe.rollout.prompts_per_step * recipe.rollout.samples_per_prompt)
    parts["rollout: KV cache"] = slots * longest * cache_per_token(shape) * width
    tokens = forwarded_tokens(recipe, prompt)
    checkpointed = recipe.model.gradient_checkpointing
    parts["update: activations"] = tokens * activations_per_token(shape, checkpointed) * width
    vocabulary = shape.vocab_size  # pyright: ignore[reportAttributeAccessIssue]
    scored = largest_micro_batch(recipe, prompt)[1] * recipe.rollout.max_new_tokens
    logits = min(max(CHUNK_LOGITS, vocabulary), scored * vocabulary)
    parts["update: logits chunk"] = LOGITS_COPIES * logits * FLOAT32
    return parts


def _critic_parameters(recipe: Recipe, parameters: int, trainable: int) -> tuple[int, int]:
    """(all, trainable) of a critic of its own, its unused head counted."""
    if recipe.critic.backbone == "copy":
        return parameters, trainable
    trust = recipe.model.trust_remote_code
    other = load_config(recipe.critic.backbone, trust_remote_code=trust)
    return count_parameters(other, recipe.model.lora, trust_remote_code=trust)


def cache_per_token(shape) -> int:
    """Numbers the key/value cache holds per token: keys and values of every layer."""
    return 2 * shape.num_hidden_layers * shape.num_key_value_heads * head_size(shape)


def activations_per_token(shape, checkpointed: bool) -> int:
    """Numbers kept for the backward pass per token of a gated-MLP decoder, attention scores never stored.

    A layer keeps its input, two normed inputs, the middle residual, queries, attention output and its projection's
    input (7 hidden), keys and values, and the MLP's gate, activation, up and product (4 intermediate). Checkpointing
    keeps each layer's input, and one layer whole at a time.
    """
    hidden, keys_values = shape.hidden_size, 2 * shape.num_key_value_heads * head_size(shape)
    layer = 7 * hidden + keys_values + 4 * shape.intermediate_size
    if checkpointed:
        return shape.num_hidden_layers * hidden + layer
    return shape.num_hidden_layers * layer


def head_size(shape) -> int:
    return getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads


def bytes_text(size: float) -> str:
    """1536 -> "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.3g} {unit}" if size < 1000 else f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:,.1f} TiB"


def count_text(number: float) -> str:
    """1234567 -> "1.23 M"."""
    for unit in ("", " K", " M"):
        if number < 1000:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:,.2f} B"
