"""What a recipe amounts to before step 1, in all and in one process: rows, optimizer steps, micro-batches, memory.

Upper bounds throughout: every completion as long as `rollout.max_new_tokens`, every prompt as long as the longest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from transformers import PretrainedConfig

from rlhf_pg.config import ResolvedRecipe
from rlhf_pg.estimate.hardware import Device
from rlhf_pg.estimate.layout import ONE_PROCESS, Layout, layout_of
from rlhf_pg.estimate.memory import Memory, process_memory
from rlhf_pg.estimate.microbatch import microbatch_positions
from rlhf_pg.estimate.model_size import ModelSize, sizes_of
from rlhf_pg.estimate.share import Share
from rlhf_pg.estimate.step_time import StepTime, step_time
from rlhf_pg.estimate.work import step_work


@dataclass(frozen=True)
class RunEstimate:
    """The numbers of a run: of one of its processes, and in all."""

    share: Share  # of one process
    size: ModelSize
    memory: Memory  # of one process
    layout: Layout = ONE_PROCESS
    critic: ModelSize | None = None

    def time_on(self, device: Device | None) -> StepTime | None:
        """Return the time of a rollout step on such a device, at most; None where its rates are not known."""
        if device is None:
            return None
        return step_time(self.share, self.size, step_work(self.share, self.size, self.critic), self.layout, device)

    @property
    def rows(self) -> int:
        """Samples of a rollout step, over all processes."""
        return self.share.recipe.rollout.prompts_per_step * self.share.samples

    @property
    def updates(self) -> int:
        """Optimizer steps per rollout step."""
        return self.share.recipe.update.epochs * self.share.recipe.update.minibatches

    @property
    def optimizer_steps(self) -> int:
        return self.share.recipe.run.steps * self.updates

    @property
    def total_samples(self) -> int:
        return self.share.recipe.run.steps * self.rows

    @property
    def total_tokens(self) -> int:
        """Sampled tokens, at most."""
        return self.total_samples * self.share.completion_length


def estimate_run(
    recipe: ResolvedRecipe,
    model_config: PretrainedConfig,
    longest_prompt: int | None = None,
    problems: int | None = None,
    longest_problem: int | None = None,
) -> RunEstimate:
    """Estimate a run of a recipe, as it was launched, with a model of `model_config` on this machine's device; loads
    nothing.

    `longest_prompt`: in tokens; default `data.max_prompt_tokens`. `problems`: held-out ones, and tokens of the longest;
    default: what the recipe says of them.
    """
    size, critic = sizes_of(recipe, model_config)
    layout = layout_of(recipe.launch)
    share = Share(
        recipe,
        prompt_length=longest_prompt or recipe.data.max_prompt_tokens,
        prompts=math.ceil(recipe.rollout.prompts_per_step / layout.processes),
        budget=microbatch_positions(recipe, model_config, longest_prompt),
        device="cuda" if torch.cuda.is_available() else "cpu",
        problems=None if problems is None else math.ceil(problems / layout.processes),
        problem_length=longest_problem,
    )
    return RunEstimate(share, size, process_memory(share, size, critic, layout), layout, critic)
