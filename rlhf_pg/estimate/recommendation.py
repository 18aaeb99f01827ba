"""What to do with a plan, in a sentence or two: the layout for each number of devices, or what makes the recipe fit."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_pg.estimate.hardware import Device
from rlhf_pg.estimate.layout_estimate import LayoutEstimate
from rlhf_pg.estimate.tables import gib, seconds

SAME = 1.02  # times that are no reason to prefer the less simple layout
NUMBERS = {1: "one", 2: "two", 4: "four", 8: "eight"}


def recommendation(estimates: Sequence[LayoutEstimate], device: Device) -> str:
    """Return "One H100: 31 of 67 GiB, 8.1 s a step. For eight use ddp: 24 GiB each, 1.2 s a step."

    Memory is what tensors take at their peak in one process, of what there is for them. Among layouts that fit, the
    simplest is taken that is as fast as any.
    """
    counts = list(dict.fromkeys(estimate.layout.processes for estimate in estimates))
    by_count = {n: [estimate for estimate in estimates if estimate.layout.processes == n] for n in counts}
    name = device.name if device.name.startswith("this ") else f"one {device.name.removeprefix('a ')}"
    sentences = [_first(by_count[counts[0]], name[0].upper() + name[1:])]
    for count in counts[1:]:
        best = best_of(by_count[count])
        number = NUMBERS.get(count, str(count))
        sentences.append(
            f"For {number} use {configuration(best)}: {gib(best.memory.peak)} each{_time(best)}."
            if best
            else f"On {number} it does not fit."
        )
    return " ".join(sentences)


def best_of(estimates: Sequence[LayoutEstimate]) -> LayoutEstimate | None:
    """Return the simplest layout that fits and is as fast as any, of the recipe as it is; None if none fits."""
    fitting = [estimate for estimate in estimates if estimate.fits and not estimate.hypothetical]
    fastest = min((estimate.time.step for estimate in fitting if estimate.time), default=0.0)
    return next((e for e in fitting if e.time is None or e.time.step <= SAME * fastest), None)


def configuration(estimate: LayoutEstimate) -> str:
    """Return the name of the accelerate configuration of a layout, as in "zero2_offload"."""
    name = estimate.layout.name.lower().replace("zero-", "zero").replace(", offloaded", "_offload")
    return name.replace("one process", "one")


def _first(estimates: Sequence[LayoutEstimate], device: str) -> str:
    best, plain = best_of(estimates), estimates[0]
    if best is plain:
        return f"{device}: {gib(plain.memory.peak, unit=False)} of {gib(plain.room)}{_time(plain)}."
    needed = f"{device}: does not fit, {gib(plain.memory.peak, unit=False)} of {gib(plain.room)}"
    ways = []
    if plain.largest:
        ways.append(f"update.tokens_per_microbatch={plain.largest} fits")
    if best:
        ways.append(f"{configuration(best)} fits: {gib(best.memory.peak)}{_time(best)}")
    adapted = next((estimate for estimate in estimates if estimate.hypothetical and estimate.fits), None)
    if adapted:
        ways.append(f"an adapter (model.lora={{}}) fits: {gib(adapted.memory.peak)}{_time(adapted)}")
    return f"{needed}; {'; '.join(ways) or 'nothing here makes it fit'}."


def _time(estimate: LayoutEstimate) -> str:
    return f", {seconds(estimate.time.step)} s a step" if estimate.time else ""
