"""The estimates as tables in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from rlhf_pg.estimate.hardware import Device
from rlhf_pg.estimate.layout_estimate import LayoutEstimate
from rlhf_pg.estimate.memory import PHASES, Memory
from rlhf_pg.estimate.microbatch import USABLE
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
    share, size = estimate.share, estimate.size
    table = _pairs("plan")
    table.add_row("rows per step", f"{share.prompts:,} prompts x {share.samples:,} samples = {share.rows:,}")
    steps = f"{share.recipe.run.steps:,} rollout steps x {estimate.updates:,} = {estimate.optimizer_steps:,}"
    table.add_row("optimizer steps", steps)
    table.add_row("micro-batches", f"at most {share.micro_batches:,} per optimizer step")
    tokens = count_text(estimate.total_tokens)
    table.add_row("samples in all", f"{estimate.total_samples:,}, at most {tokens} tokens")
    trainable = "all" if size.trainable == size.parameters else count_text(size.trainable)
    table.add_row("parameters", f"{count_text(size.parameters)}, {trainable} trained")
    console.print(table, parts_table(estimate.memory), sep="\n")


def parts_table(memory: Memory) -> Table:
    """Return a table with a row per part and the phases it is alive in."""
    table = _pairs("memory, estimated")
    for part in memory.parts:
        phases = "" if part.alive == frozenset(PHASES) else ", ".join(p for p in PHASES if p in part.alive)
        table.add_row(part.name, bytes_text(part.size), Text("host" if part.host else phases, style="dim"))
    table.add_row("peak", bytes_text(memory.peak), memory.phase, style="bold")
    return table


def _pairs(title: str) -> Table:
    return Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))


# ---- every layout


def show_layouts(estimates: Sequence[LayoutEstimate], device: Device, console: Console) -> None:
    """Print the first estimate, of one process, part by part; then every layout's memory, then its time."""
    first = estimates[0]
    show_run(RunEstimate(first.share, first.size, first.memory), console)
    console.print()
    heading = f"{device.name}: {bytes_text(device.memory)}, of which {USABLE:.0%} are planned with"
    console.print(Text(heading + rates(device)))
    for processes in dict.fromkeys(estimate.layout.processes for estimate in estimates):
        columns = [estimate for estimate in estimates if estimate.layout.processes == processes]
        title = f"{processes} process{'es' if processes > 1 else ''}: memory of each (KiB, MiB, GiB)"
        console.print(memory_table(columns, title))
    if device.flops is None:
        console.print("No times: the device's rates are not known. Give --measure, --gpu, or --tflops and --bandwidth")
    else:
        console.print(time_table(estimates))


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
            table.add_row(group, *map(_short, sums))
    if any(estimate.memory.host for estimate in estimates):
        table.add_row("on the host", *(_short(estimate.memory.host) for estimate in estimates))
    peaks = ((_short(estimate.memory.peak), "bold" if estimate.fits else "bold red") for estimate in estimates)
    table.add_row("peak", *(Text(*peak) for peak in peaks))
    table.add_row("micro-batch", *map(_micro_batch, estimates))
    return table


def time_table(estimates: Sequence[LayoutEstimate]) -> Table:
    """Return a table with a row per layout that fits."""
    title = "time of a rollout step, and sampled tokens per second"
    names = ("rollout s", "update s", "traffic s", "step s", "tokens/s")
    columns = [Column("GPUs", justify="right"), "layout", *(Column(name, justify="right") for name in names)]
    table = Table(*columns, title=title, title_justify="left", box=SIMPLE_HEAD)
    for estimate in estimates:
        launch, time = (str(estimate.layout.processes), estimate.name), estimate.time
        if not estimate.largest:
            table.add_row(*launch, "does not fit", "", "", "", "", style="dim")
        elif time:
            seconds = (f"{s:,.3g}" for s in (time.rollout, time.update, time.communication, time.step))
            table.add_row(*launch, *seconds, f"{estimate.tokens_per_s:,.0f}")
    return table


def _short(size: float) -> str:
    """Return 1.5 MiB as "1.5 M", and nothing for 0."""
    return bytes_text(size).replace("iB", "") if size else ""


def _micro_batch(estimate: LayoutEstimate) -> Text:
    """Return the positions of the largest that fits ("all": of an optimizer step), red where the planned does not."""
    if not estimate.largest:
        return Text("too big", "red")
    everything = estimate.largest >= estimate.share.minibatch_positions
    return Text("all" if everything else f"<= {estimate.largest:,}", "" if estimate.fits else "red")


def _sum(estimate: LayoutEstimate, group: str) -> int:
    return sum(part.size for part in estimate.memory.parts if group_of(part.name) == group and not part.host)


# ---- numbers


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
