"""What a recipe amounts to, worked out before step 1: rows, optimizer steps, micro-batches, memory by part.

Upper bounds throughout: every completion as long as `rollout.max_new_tokens`, every prompt as long as the longest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PretrainedConfig

from rlhf_pg.config import Model, ResolvedRecipe
from rlhf_pg.estimate.memory import PHASES, Memory, kept_per_position, largest_tokens, memory
from rlhf_pg.estimate.model_size import size_of, sizes_of
from rlhf_pg.estimate.share import Share

MOST_TOKENS = 16_384  # of a micro-batch where the recipe names none
LEAST_TOKENS = 512
CPU_ACTIVATIONS = 256 * 2**20  # bytes of a micro-batch's activations on a CPU
USABLE = 0.9  # of a GPU's memory: its allocator cannot fill every gap


@dataclass(frozen=True)
class Plan:
    """The numbers of a run. Memory of one process."""

    prompts: int  # N per rollout step
    samples: int  # G per prompt
    rollout_steps: int
    updates: int  # optimizer steps per rollout step
    micro_batches: int  # per optimizer step, at most
    parameters: int
    trainable: int
    max_new_tokens: int
    memory: Memory

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


def plan(recipe: ResolvedRecipe, model_config: PretrainedConfig, longest_prompt: int | None = None) -> Plan:
    """The plan of a recipe for a model of `model_config`, in one process; loads nothing.

    `longest_prompt`: in tokens; default `data.max_prompt_tokens`.
    """
    size, critic = sizes_of(recipe, model_config)
    recipe = settled(recipe, model_config, longest_prompt)
    share = share_of(recipe, longest_prompt)
    return Plan(
        prompts=recipe.rollout.prompts_per_step,
        samples=recipe.rollout.samples_per_prompt,
        rollout_steps=recipe.run.steps,
        updates=recipe.update.epochs * recipe.update.minibatches,
        micro_batches=share.micro_batches,
        parameters=size.parameters,
        trainable=size.trainable,
        max_new_tokens=recipe.rollout.max_new_tokens,
        memory=memory(share, size, critic),
    )


def share_of(recipe: ResolvedRecipe, longest_prompt: int | None = None) -> Share:
    """All of a settled recipe's step in one process, on the device there is."""
    prompt = longest_prompt or recipe.data.max_prompt_tokens
    return Share(recipe, prompt, recipe.rollout.prompts_per_step, recipe.update.positions, device_kind())


def device_kind() -> Literal["cpu", "cuda"]:
    return "cuda" if torch.cuda.is_available() else "cpu"


def settled(
    recipe: ResolvedRecipe, model_config: PretrainedConfig, longest_prompt: int | None = None
) -> ResolvedRecipe:
    """The recipe with the micro-batch that suits model and device, where it names none.

    On a GPU: MOST_TOKENS, or the most that fits beside everything else. On a CPU: `suitable_tokens`.
    """
    if recipe.update.tokens_per_microbatch is not None:
        return recipe
    tokens = suitable_tokens(model_config, recipe.model, recipe.update.share_prompts)
    if torch.cuda.is_available():
        size, critic = sizes_of(recipe, model_config)
        room = USABLE * torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        prompt = longest_prompt or recipe.data.max_prompt_tokens
        share = Share(recipe, prompt, recipe.rollout.prompts_per_step, tokens, "cuda")
        tokens = largest_tokens(share, size, critic, room) or LEAST_TOKENS
    return with_tokens(recipe, tokens)


def with_tokens(recipe: ResolvedRecipe, tokens: int) -> ResolvedRecipe:
    return recipe.changed(update=recipe.update.model_copy(update={"tokens_per_microbatch": tokens}))


def suitable_tokens(model_config: PretrainedConfig, model: Model, shared: bool = True) -> int:
    """Positions to forward at once on the device there is, memory beside them left out. `model`: the recipe's section.

    A CPU's products are as fast with a thousand rows as with more, so there it is by memory: CPU_ACTIVATIONS.
    """
    if torch.cuda.is_available():
        return MOST_TOKENS
    kept = kept_per_position(size_of(model_config, model.lora), model, shared)
    return min(MOST_TOKENS, max(LEAST_TOKENS, CPU_ACTIVATIONS // kept))


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
    console.print(steps, memory_table(plan.memory), sep="\n")


def memory_table(memory: Memory) -> Table:
    """A row per part, with the phases it is alive in."""
    made = Table(title="memory, estimated", title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    for part in memory.parts:
        when = "" if part.alive == frozenset(PHASES) else ", ".join(phase for phase in PHASES if phase in part.alive)
        made.add_row(part.name, bytes_text(part.size), Text("host" if part.host else when, style="dim"))
    made.add_row("peak", bytes_text(memory.peak), memory.phase, style="bold")
    return made


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
