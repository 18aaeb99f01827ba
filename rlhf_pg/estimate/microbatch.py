"""How many positions to forward at once where the recipe does not name `update.tokens_per_microbatch`."""

from __future__ import annotations

import math

import torch
from transformers import PretrainedConfig

from rlhf_pg.config import Model, ResolvedRecipe
from rlhf_pg.estimate.layout import layout_of
from rlhf_pg.estimate.memory import activations_per_position, largest_budget
from rlhf_pg.estimate.model_size import UnknownShape, size_of, sizes_of
from rlhf_pg.estimate.share import Share

MOST_POSITIONS = 16_384
LEAST_POSITIONS = 512
UNKNOWN_POSITIONS = 2_048  # of a model whose activations are not counted
CPU_ACTIVATIONS = 256 * 2**20  # bytes of a micro-batch's activations on a CPU


def microbatch_positions(
    recipe: ResolvedRecipe, model_config: PretrainedConfig, longest_prompt: int | None = None
) -> int:
    """Return the positions of a micro-batch: those the recipe names, or what suits the model and this machine's device.

    On a GPU: MOST_POSITIONS, or the most that fits beside everything else. On a CPU: `suitable_positions`. Of a model
    of unknown shape: UNKNOWN_POSITIONS.
    `longest_prompt`: in tokens; default `data.max_prompt_tokens`.
    """
    if recipe.update.tokens_per_microbatch is not None:
        return recipe.update.tokens_per_microbatch
    try:
        return _suitable_for_run(recipe, model_config, longest_prompt)
    except UnknownShape:
        return UNKNOWN_POSITIONS


def _suitable_for_run(recipe: ResolvedRecipe, model_config: PretrainedConfig, longest_prompt: int | None) -> int:
    positions = suitable_positions(model_config, recipe.model, recipe.update.share_prompts)
    if not torch.cuda.is_available():
        return positions
    size, critic = sizes_of(recipe, model_config)
    layout = layout_of(recipe.launch)
    room = layout.room(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory, is_gpu=True)
    prompt_length = longest_prompt or recipe.data.max_prompt_tokens
    prompts = math.ceil(recipe.rollout.prompts_per_step / layout.processes)
    share = Share(recipe, prompt_length, prompts, positions, "cuda")
    return largest_budget(share, size, critic, room, layout) or LEAST_POSITIONS


def with_microbatch(recipe: ResolvedRecipe, positions: int) -> ResolvedRecipe:
    """Return the recipe with `update.tokens_per_microbatch` = `positions`."""
    return recipe.changed(update=recipe.update.model_copy(update={"tokens_per_microbatch": positions}))


def suitable_positions(model_config: PretrainedConfig, model: Model, shared: bool = True) -> int:
    """Return the positions to forward at once on this machine's device, whatever else needs memory there.

    A CPU's products are as fast with a thousand rows as with more, so there it is by memory: CPU_ACTIVATIONS. Of a
    model of unknown shape: UNKNOWN_POSITIONS.
    """
    try:
        size = size_of(model_config, model.lora, trust_remote_code=model.trust_remote_code)
    except UnknownShape:
        return UNKNOWN_POSITIONS
    if torch.cuda.is_available():
        return MOST_POSITIONS
    per_position = activations_per_position(size, model, shared)
    return min(MOST_POSITIONS, max(LEAST_POSITIONS, CPU_ACTIVATIONS // per_position))
