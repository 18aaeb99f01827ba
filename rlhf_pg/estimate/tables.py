"""The estimates as tables in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from rlhf_pg.estimate.hardware import Device
from rlhf_pg.estimate.layout import GIB, ONE_PROCESS, Layout
from rlhf_pg.estimate.layout_estimate import LayoutEstimate
from rlhf_pg.estimate.memory import PHASES, Memory
from rlhf_pg.estimate.run_estimate import RunEstimate

GROUPS = {  # row of the layouts' memory -> beginnings of its parts' names
    "weights": ("weights", "gathered", "bfloat16 copies", "rollout: weights", "second process", "engine"),
    "gradients": ("gradient",),
    "optimizer": ("Adam", "weights of the optimizer", "trust region"),
    "reference": ("reference",),
    "critic": ("critic",),
    "KV cache": ("rollout: KV", "rollout: sampling"),
    "activations": ("update: activations",),
    "logits": ("update: logits",),
}


def group_of(name: str) -> str:
    """Return the group of a part by the longest beginning that fits its name; "other" for what is in none."""
    lengths = {(len(start), group) for group, starts in GROUPS.items() for start in starts if name.startswith(start)}
    return max(lengths, default=(0, "other"))[1]


# ---- one run


def show_run(estimate: RunEstimate, console: Console) -> None:
    """Print a run's steps and its memory as two small tables."""
    recipe, share, size = estimate.share.recipe, estimate.share, estimate.size
    table = _pairs("plan")
    prompts = recipe.rollout.prompts_per_step
    table.add_row("rows per step", f"{prompts:,} prompts x {share.samples:,} samples = {estimate.rows:,}")
    steps = f"{recipe.run.steps:,} rollout steps x {estimate.updates:,} = {estimate.optimizer_steps:,}"
    table.add_row("optimizer steps", steps)
    table.add_row("micro-batches", f"at most {share.micro_batches:,} per optimizer step")
    tokens = count_text(estimate.total_tokens)
    table.add_row("samples in all", f"{estimate.total_samples:,}, at most {tokens} tokens")
    trainable = "all" if size.trainable == size.parameters else count_text(size.trainable)
    table.add_row("parameters", f"{count_text(size.parameters)}, {trainable} trained")
    console.print(table, parts_table(estimate.memory, estimate.layout), sep="\n")


def memory_text(memory: Memory) -> str:
    """Return "0.28 GiB at the most, in its update": what the metric memory/peak_gib is to be compared with."""
    return f"{gib(memory.peak)} at the most, in its {memory.phase}"


def parts_table(memory: Memory, layout: Layout = ONE_PROCESS) -> Table:
    """Return a table with a row per part and the phases it is alive in."""
    several = f", {layout.name}" if layout.processes > 1 else ""
    table = _pairs(f"memory of one process{several}: tensors, estimated, GiB")
    table.columns[1].justify = "right"
    for part in memory.parts:
        phases = "" if part.alive == frozenset(PHASES) else ", ".join(p for p in PHASES if p in part.alive)
        table.add_row(part.name, gib(part.size, unit=False), Text("host" if part.host else phases, style="dim"))
    table.add_row("peak", gib(memory.peak, unit=False), memory.phase, style="bold")
    return table


def _pairs(title: str) -> Table:
    return Table("", "", "", title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))


# ---- every layout


def show_layouts(estimates: Sequence[LayoutEstimate], device: Device, console: Console) -> None:
    """Print every layout's memory and time, then the memory of one process part by part, then that of all layouts."""
    room = gib(estimates[0].room)
    heading = f"{device.name}: {gib(device.memory)}, of which {room} for tensors"
    console.print(Text(heading + rates(device)))
    console.print(layouts_table(estimates))
    if device.flops is None:
        console.print("No times: the device's rates are not known. Give --measure, --gpu, or --tflops and --bandwidth")
    first = estimates[0]
    console.print()
    show_run(RunEstimate(first.share, first.size, first.memory), console)
    console.print()
    for processes in dict.fromkeys(estimate.layout.processes for estimate in estimates):
        columns = [estimate for estimate in estimates if estimate.layout.processes == processes]
        title = f"{processes} process{'es' if processes > 1 else ''}: memory of each, GiB"
        console.print(memory_table(columns, title))


def rates(device: Device) -> str:
    """Return "; 67 TFLOP/s x 0.25, 3,350 GB/s", or nothing where they are not known."""
    if device.flops is None or device.bandwidth is None:
        return ""
    return f"; {device.flops / 1e12:,.3g} TFLOP/s x {device.mfu:g}, {device.bandwidth / 1e9:,.4g} GB/s"


def memory_table(estimates: Sequence[LayoutEstimate], title: str) -> Table:
    """Return a table with a column per layout and a row per group of memory; what is in the host's memory has its own.

    It fits into 80 characters.
    """
    names = [estimate.name.replace(", ", "\n").replace("offloaded", "offload") for estimate in estimates]
    columns = [Column("", min_width=11), *(Column(name, justify="right") for name in names)]
    options = dict(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False)
    table = Table(*columns, **options)  # pyright: ignore[reportArgumentType]
    for group in (*GROUPS, "other"):
        sums = [_sum(estimate, group) for estimate in estimates]
        if any(sums):
            table.add_row(group, *map(_cell, sums))
    if any(estimate.memory.host for estimate in estimates):
        table.add_row("on the host", *(_cell(estimate.memory.host) for estimate in estimates))
    table.add_row("peak", *map(_peak, estimates))
    return table


def layouts_table(estimates: Sequence[LayoutEstimate]) -> Table:
    """Return a row per layout: peak memory, the largest micro-batch that fits and, where rates are known, the time of a
    rollout step and sampled tokens per second. It fits into 80 characters."""
    timed = any(estimate.time for estimate in estimates)
    names = ["GPUs", "layout", "peak\nGiB", "micro-\nbatch"]
    names += ["rollout\ns", "update\ns", "traffic\ns", "step\ns", "tokens\n/ s"] if timed else []
    columns = [Column(name, justify="left" if name == "layout" else "right", no_wrap=True) for name in names]
    title = "each layout: memory of a process, time of a rollout step"
    table = Table(*columns, title=title, title_justify="left", box=SIMPLE_HEAD, padding=0)
    for estimate in estimates:
        time = estimate.time if estimate.largest else None
        cells = [seconds(s) for s in (time.rollout, time.update, time.communication, time.step)] if time else []
        cells += [count_text(estimate.tokens_per_s or 0)] if time else []
        launch = str(estimate.layout.processes), _short_name(estimate.name)
        style = "" if estimate.largest else "dim"
        table.add_row(*launch, _peak(estimate), _micro_batch(estimate), *cells, style=style)
    return table


def _short_name(layout: str) -> str:
    return layout.replace(", offloaded", " offload").replace(", LoRA", " LoRA")


def _peak(estimate: LayoutEstimate) -> Text:
    """Return the peak, red where it does not fit."""
    return Text(gib(estimate.memory.peak, unit=False), "bold" if estimate.fits else "bold red")


def _cell(size: float) -> str:
    return gib(size, unit=False) if size else ""


def _micro_batch(estimate: LayoutEstimate) -> Text:
    """Return the positions of the largest that fits ("all": of an optimizer step), red where the planned does not."""
    if not estimate.largest:
        return Text("too big", "red")
    everything = estimate.largest >= estimate.share.minibatch_positions
    return Text("all" if everything else f"<= {estimate.largest:,}", "" if estimate.fits else "red")


def _sum(estimate: LayoutEstimate, group: str) -> int:
    return sum(part.size for part in estimate.memory.parts if group_of(part.name) == group and not part.host)


# ---- numbers


def gib(size: float, unit: bool = True) -> str:
    """Return bytes in GiB, the unit of every memory shown: 300000000 -> "0.28 GiB"."""
    value = size / GIB
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    text = "<0.01" if 0 < value < 0.005 else f"{value:,.{digits}f}"
    return f"{text} GiB" if unit else text


def seconds(value: float) -> str:
    """Return seconds to two digits or so: 0.215 -> "0.22", 8.13 -> "8.1", 1234.5 -> "1,234"."""
    if 0 < value < 0.0005:
        return "<0.001"
    digits = 0 if value == 0 or value >= 19.95 else 1 if value >= 0.995 else 2 if value >= 0.0995 else 3
    return f"{value:,.{digits}f}"


def count_text(number: float) -> str:
    """1234567 -> "1.23 M"."""
    for unit in ("", " K", " M"):
        if number < 1000:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:,.2f} B"
