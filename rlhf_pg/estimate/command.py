"""`rlhf-pg plan`: memory and time of a recipe in every layout, from the model's configuration alone."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import PretrainedConfig

from rlhf_pg.config import Launch, Lora, ResolvedRecipe, contradictions
from rlhf_pg.estimate import hardware, tables
from rlhf_pg.estimate.arguments import LAYOUTS_OF, Wanted
from rlhf_pg.estimate.estimate import MOST_TOKENS, USABLE, with_tokens
from rlhf_pg.estimate.estimate import plan as plan_of
from rlhf_pg.estimate.hardware import Device
from rlhf_pg.estimate.layout import Layout, layouts
from rlhf_pg.estimate.memory import Memory, largest_tokens, memory
from rlhf_pg.estimate.model_size import Size, sizes_of
from rlhf_pg.estimate.share import Share
from rlhf_pg.estimate.step_time import StepTime, step_time
from rlhf_pg.estimate.work import Work, work
from rlhf_pg.models.load import load_config


@dataclass(frozen=True)
class Row:
    """One layout of the recipe. Memory is of one process, time of the whole step."""

    layout: Layout
    lora: bool
    room: int  # bytes of a device that are planned with
    largest: int  # positions of a micro-batch that fit; 0: nothing does
    whole: int  # positions of a whole optimizer step
    tokens: int  # positions planned with
    memory: Memory
    work: Work
    time: StepTime | None
    tokens_per_s: float | None  # sampled tokens, over all processes

    @property
    def fits(self) -> bool:
        return self.memory.peak <= self.room

    @property
    def name(self) -> str:
        return f"{self.layout.name}, LoRA" if self.lora else self.layout.name


def run(recipe: ResolvedRecipe, wanted: Wanted) -> int:
    """Print tables, or JSON. Raises ValueError for a model or a device that cannot be planned for."""
    config = model_config(recipe)
    device = device_of(recipe, wanted)
    rows = list(table(recipe, config, device, wanted))
    whole = plan_of(with_tokens(recipe, rows[0].tokens), config, wanted.prompt_tokens)
    whole = replace(whole, memory=rows[0].memory)
    record = record_of(recipe, device, rows)
    if wanted.json:
        print(json.dumps(record, indent=1))
    else:
        tables.show(whole, device, rows, Console())
    return 0


def model_config(recipe: ResolvedRecipe) -> PretrainedConfig:
    """The configuration of `model.path`. Raises ValueError if there is none, or attention is not over everything."""
    path = recipe.model.path
    if Path(path).is_dir() and not (Path(path) / "config.json").is_file():
        raise ValueError(
            f"model.path: no config.json in {path}; the plan reads that file of a Hugging Face model folder"
        )
    config = load_config(path, trust_remote_code=recipe.model.trust_remote_code)
    text: Any = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"} or getattr(text, "sliding_window", None):
        raise ValueError(
            f"model.path: {path} has layers that do not attend to everything before them (sliding windows, or "
            f"{', '.join(sorted(kinds))}): the plan does not know their memory; use a model with full attention"
        )
    return config


def device_of(recipe: ResolvedRecipe, wanted: Wanted) -> Device:
    """The device that is planned for: named, given by its numbers, or what is there."""
    if wanted.gpu:
        device = hardware.named(wanted.gpu, recipe.model.dtype)
    elif wanted.gpu_memory and not wanted.measure:
        device = hardware.of_memory(wanted.gpu_memory)
    else:
        device = hardware.here()
    if wanted.gpu_memory:
        device = replace(device, memory=int(wanted.gpu_memory * 2**30))
    if wanted.measure:
        device = hardware.measured(device, recipe.model.dtype)
    if wanted.tflops:
        device = replace(device, flops=wanted.tflops * 1e12, mfu=hardware.OF_A_CARD)
    if wanted.bandwidth:
        device = replace(device, bandwidth=wanted.bandwidth * 1e9)
    return replace(device, mfu=wanted.mfu) if wanted.mfu else device


def table(recipe: ResolvedRecipe, config: PretrainedConfig, device: Device, wanted: Wanted) -> Iterator[Row]:
    """One process first; every number of GPUs in every layout, with all weights trained and by an adapter."""
    gpus = wanted.gpus or (LAYOUTS_OF if device.is_gpu else (1,))
    variants = [recipe]
    if recipe.model.lora is None:
        section = recipe.model.model_copy(update={"lora": Lora()})
        variants.append(recipe.changed(model=section))
    sizes = [sizes_of(variant, config) for variant in variants]
    for number in dict.fromkeys([1, *gpus]):
        for variant, (size, critic) in zip(variants, sizes, strict=True):
            for layout in layouts(number):
                hypothetical = variant is not recipe
                if possible(variant, layout, device) and not (hypothetical and layout.stage):
                    yield row(variant, size, critic, layout, device, wanted)


def possible(recipe: ResolvedRecipe, layout: Layout, device: Device) -> bool:
    """Whether `rlhf-pg train` runs this recipe so: see docs/scaling.md."""
    launch = Launch(layout.processes, layout.stage)
    if any(contradictions.of_launch(recipe.written, recipe.algorithm, launch)):
        return False
    return device.is_gpu or not layout.offload


def row(recipe: ResolvedRecipe, size: Size, critic: Size | None, layout: Layout, device: Device, wanted: Wanted) -> Row:
    """A layout, with the micro-batch that the recipe names, or the usual one, or the largest that fits."""
    prompts = math.ceil(recipe.rollout.prompts_per_step / layout.processes)
    prompt = wanted.prompt_tokens or recipe.data.max_prompt_tokens
    share = Share(recipe, prompt, prompts, MOST_TOKENS, "cuda" if device.is_gpu else "cpu")
    room = int(USABLE * device.memory)
    largest = largest_tokens(share, size, critic, room, layout)
    tokens = recipe.update.tokens_per_microbatch or min(MOST_TOKENS, largest or MOST_TOKENS)
    share = replace(share, tokens=tokens)
    made = work(share, size, critic)
    taken = step_time(share, size, made, layout, device)
    sampled = recipe.rollout.prompts_per_step * recipe.rollout.samples_per_prompt * share.completion
    return Row(
        layout=layout,
        lora=recipe.model.lora is not None,
        room=room,
        largest=largest,
        whole=share.positions(share.per_update, share.per_update * share.samples),
        tokens=tokens,
        memory=memory(share, size, critic, layout),
        work=made,
        time=taken,
        tokens_per_s=sampled / taken.step if taken else None,
    )


def record_of(recipe: ResolvedRecipe, device: Device, rows: list[Row]) -> dict[str, Any]:
    """What --json prints: bytes, seconds, operations."""
    return {
        "model": recipe.model.path,
        "algorithm": recipe.algorithm.name,
        "device": asdict(device),
        "usable_memory": USABLE * device.memory,
        "layouts": [_record(one) for one in rows],
    }


def _record(row: Row) -> dict[str, Any]:
    parts = [
        {
            "name": p.name,
            "bytes": p.size,
            "phases": sorted(p.alive),
            "host": p.host,
            "group": tables.group_of(p.name),
        }
        for p in row.memory.parts
    ]
    return {
        "name": row.name,
        "processes": row.layout.processes,
        "fits": row.fits,
        "peak": row.memory.peak,
        "peak_phase": row.memory.phase,
        "host": row.memory.host,
        "largest_micro_batch": row.largest,
        "whole_step": row.whole,
        "micro_batch": row.tokens,
        "parts": parts,
        "work": asdict(row.work),
        "time": None if row.time is None else asdict(row.time) | {"step": row.time.step},
        "tokens_per_s": row.tokens_per_s,
    }
