"""`rlhf-pg plan`: memory and time of a recipe in every layout, from the model's configuration alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from rich.console import Console

from rlhf_pg.commands.plan_options import PlanOptions
from rlhf_pg.config import ResolvedRecipe
from rlhf_pg.estimate import hardware, tables
from rlhf_pg.estimate.hardware import Device
from rlhf_pg.estimate.layout_estimate import LayoutEstimate, estimate_layouts
from rlhf_pg.estimate.model_size import UnknownShape, model_config
from rlhf_pg.estimate.recommendation import recommendation


def run(recipe: ResolvedRecipe, options: PlanOptions) -> int:
    """Print tables, or JSON; of a model of unknown shape, that there is no estimate and why.

    Raises ValueError for a model or a device that cannot be planned for.
    """
    config = model_config(recipe.model)
    device = device_of(recipe.model.dtype, options)
    estimates, unknown = [], ""
    try:
        estimates = list(estimate_layouts(recipe, config, device, options.gpus, options.prompt_tokens))
    except UnknownShape as error:
        unknown = str(error)
    if options.json:
        print(json.dumps(record(recipe, device, estimates) | ({"no_estimate": unknown} if unknown else {}), indent=1))
    elif unknown:
        print(f"no estimate: {unknown}. `rlhf-pg train` may run it all the same; `rlhf-pg check` says whether it does.")
    else:
        console = Console()
        console.print(recommendation(estimates, device), style="bold", highlight=False)
        tables.show_layouts(estimates, device, console)
    return 0


def device_of(dtype: str, options: PlanOptions) -> Device:
    """Return the device to plan for: a card by name, one of a given memory, or this machine's, with the rates given."""
    if options.gpu:
        device = hardware.named(options.gpu, dtype)
    elif options.gpu_memory and not options.measure:
        device = hardware.of_memory(options.gpu_memory)
    else:
        device = hardware.this_machine()
    if options.gpu_memory:
        device = replace(device, memory=int(options.gpu_memory * 2**30))
    if options.measure:
        device = hardware.measured(device, dtype)
    if options.tflops:
        device = replace(device, flops=options.tflops * 1e12, mfu=hardware.MFU_OF_A_CARD)
    if options.bandwidth:
        device = replace(device, bandwidth=options.bandwidth * 1e9)
    return replace(device, mfu=options.mfu) if options.mfu else device


def record(recipe: ResolvedRecipe, device: Device, estimates: Sequence[LayoutEstimate]) -> dict[str, Any]:
    """Return what --json prints: bytes, seconds, operations."""
    return {
        "model": recipe.model.path,
        "algorithm": recipe.algorithm.name,
        "device": asdict(device),
        "recommendation": recommendation(estimates, device) if estimates else None,
        "layouts": [_layout_record(estimate) for estimate in estimates],
    }


def _layout_record(estimate: LayoutEstimate) -> dict[str, Any]:
    parts = [
        {
            "name": part.name,
            "bytes": part.size,
            "phases": sorted(part.alive),
            "host": part.host,
            "group": tables.group_of(part.name),
        }
        for part in estimate.memory.parts
    ]
    time = estimate.time
    return {
        "name": estimate.name,
        "processes": estimate.layout.processes,
        "fits": estimate.fits,
        "room": estimate.room,
        "peak": estimate.memory.peak,
        "peak_phase": estimate.memory.phase,
        "host": estimate.memory.host,
        "largest_micro_batch": estimate.largest,
        "whole_step": estimate.share.minibatch_positions,
        "micro_batch": estimate.share.budget,
        "parts": parts,
        "work": asdict(estimate.work),
        "time": None if time is None else asdict(time) | {"step": time.step},
        "tokens_per_s": estimate.tokens_per_s,
    }
