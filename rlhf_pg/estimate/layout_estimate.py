"""A recipe in every layout that can run it: memory, micro-batches and time, from the model's configuration alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from transformers import PretrainedConfig

from rlhf_pg.config import Launch, Lora, ResolvedRecipe, contradictions
from rlhf_pg.estimate.hardware import Device
from rlhf_pg.estimate.layout import GPU_COUNTS, Layout, layouts
from rlhf_pg.estimate.memory import Memory, largest_budget, process_memory
from rlhf_pg.estimate.microbatch import MOST_POSITIONS
from rlhf_pg.estimate.model_size import ModelSize, sizes_of
from rlhf_pg.estimate.share import Share, held_out_problems
from rlhf_pg.estimate.step_time import StepTime, step_time
from rlhf_pg.estimate.work import Work, step_work


@dataclass(frozen=True)
class LayoutEstimate:
    """The numbers of one layout. Memory and work are of one process, time of the whole step."""

    layout: Layout
    share: Share  # of one process, with the micro-batch that is planned with
    size: ModelSize
    room: int  # bytes of a device for tensors
    largest: int  # positions of a micro-batch that fit; 0: nothing does
    memory: Memory
    work: Work
    time: StepTime | None  # None: the device's rates are not known
    hypothetical: bool = False  # with an adapter that the recipe does not have

    @property
    def fits(self) -> bool:
        return self.memory.peak <= self.room

    @property
    def name(self) -> str:
        return self.layout.name if self.share.recipe.model.lora is None else f"{self.layout.name}, LoRA"

    @property
    def tokens_per_s(self) -> float | None:
        """Sampled tokens a second, over all processes."""
        rollout = self.share.recipe.rollout
        tokens = rollout.prompts_per_step * rollout.samples_per_prompt * rollout.max_new_tokens
        return tokens / self.time.step if self.time else None


def estimate_layouts(
    recipe: ResolvedRecipe,
    config: PretrainedConfig,
    device: Device,
    gpu_counts: Sequence[int] | None = None,
    prompt_length: int | None = None,
) -> Iterator[LayoutEstimate]:
    """Estimate one process first, then every layout of each number of GPUs, each also with an adapter.

    `gpu_counts`: default GPU_COUNTS, or one process on a CPU; `prompt_length`: default `data.max_prompt_tokens`.
    """
    gpu_counts = gpu_counts or (GPU_COUNTS if device.is_gpu else (1,))
    variants = [recipe]
    if recipe.model.lora is None:
        section = recipe.model.model_copy(update={"lora": Lora()})
        variants.append(recipe.changed(model=section))
    sizes = [sizes_of(variant, config) for variant in variants]
    for processes in dict.fromkeys([1, *gpu_counts]):
        for variant, (size, critic) in zip(variants, sizes, strict=True):
            for layout in layouts(processes):
                hypothetical = variant is not recipe
                if possible(variant, layout, device) and not (hypothetical and layout.stage):
                    prompts = math.ceil(recipe.rollout.prompts_per_step / processes)
                    longest = prompt_length or recipe.data.max_prompt_tokens
                    held_out = held_out_problems(recipe)
                    problems = None if held_out is None else math.ceil(held_out / processes)
                    kind = "cuda" if device.is_gpu else "cpu"
                    share = Share(variant, longest, prompts, MOST_POSITIONS, kind, problems)
                    yield replace(estimate_layout(share, size, critic, layout, device), hypothetical=hypothetical)


def possible(recipe: ResolvedRecipe, layout: Layout, device: Device) -> bool:
    """Return whether `rlhf-pg train` runs this recipe in a layout: see docs/scaling.md."""
    launch = Launch(layout.processes, layout.stage)
    if any(contradictions.of_launch(recipe.written, recipe.algorithm, launch)):
        return False
    return device.is_gpu or not layout.offload


def estimate_layout(
    share: Share, size: ModelSize, critic: ModelSize | None, layout: Layout, device: Device
) -> LayoutEstimate:
    """Estimate one layout with the micro-batch that the recipe names, or MOST_POSITIONS, or the largest that fits."""
    room = layout.room(device.memory, device.is_gpu)
    largest = largest_budget(share, size, critic, room, layout)
    positions = share.recipe.update.tokens_per_microbatch or min(MOST_POSITIONS, largest or MOST_POSITIONS)
    share = replace(share, budget=positions)
    work = step_work(share, size, critic)
    return LayoutEstimate(
        layout=layout,
        share=share,
        size=size,
        room=room,
        largest=largest,
        memory=process_memory(share, size, critic, layout),
        work=work,
        time=step_time(share, size, work, layout, device),
    )
