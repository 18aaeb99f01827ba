"""The plan as tables in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from rlhf_pg.estimate.estimate import USABLE, Plan, bytes_text
from rlhf_pg.estimate.estimate import show as show_plan
from rlhf_pg.estimate.hardware import Device

if TYPE_CHECKING:
    from rlhf_pg.estimate.command import Row

GROUPS = {  # heading of a column -> beginnings of its parts' names
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
    """The column of a part; "other" for what is in none."""
    longest = max(
        ((len(start), group) for group, starts in GROUPS.items() for start in starts if name.startswith(start)),
        default=(0, "other"),
    )
    return longest[1]


def show(plan: Plan, device: Device, rows: Sequence[Row], console: Console) -> None:
    """The recipe in one process part by part, then every layout's memory, then time."""
    show_plan(plan, console)
    console.print()
    console.print(
        Text(f"{device.name}: {bytes_text(device.memory)}, of which {USABLE:.0%} are planned with" + rates(device))
    )
    for processes in dict.fromkeys(row.layout.processes for row in rows):
        some = [row for row in rows if row.layout.processes == processes]
        console.print(
            memory_table(some, f"{processes} process{'es' if processes > 1 else ''}: memory of each (KiB, MiB, GiB)")
        )
    if device.flops is None:
        console.print("No times: the device's rates are not known. Give --measure, --gpu, or --tflops and --bandwidth")
    else:
        console.print(time_table(rows))


def rates(device: Device) -> str:
    if device.flops is None or device.bandwidth is None:
        return ""
    return f"; {device.flops / 1e12:,.3g} TFLOP/s x {device.mfu:g}, {device.bandwidth / 1e9:,.4g} GB/s"


def memory_table(rows: Sequence[Row], title: str) -> Table:
    """A column per layout, a row per kind of memory; what waits in the host's memory is apart. Fits 80 characters."""
    made = Table(
        Column("", min_width=11),
        title=title,
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
        pad_edge=False,
    )
    for row in rows:
        made.add_column(row.name.replace(", ", "\n").replace("offloaded", "offload"), justify="right")
    for head in (*GROUPS, "other"):
        sums = [_sum(row, head) for row in rows]
        if any(sums):
            made.add_row(head, *(_short(size) if size else "" for size in sums))
    if any(row.memory.host for row in rows):
        made.add_row("on the host", *(_short(row.memory.host) if row.memory.host else "" for row in rows))
    made.add_row("peak", *(Text(_short(row.memory.peak), "bold" if row.fits else "bold red") for row in rows))
    made.add_row("micro-batch", *(_micro_batch(row) for row in rows))
    return made


def time_table(rows: Sequence[Row]) -> Table:
    """A row per layout that fits."""
    heads = ("GPUs", "layout", "rollout s", "update s", "traffic s", "step s", "tokens/s")
    made = Table(
        *heads, title="time of a rollout step, and sampled tokens per second", title_justify="left", box=SIMPLE_HEAD
    )
    for column in (made.columns[0], *made.columns[2:]):
        column.justify = "right"
    for row in rows:
        if not row.largest:
            made.add_row(str(row.layout.processes), row.name, *["does not fit", "", "", "", ""], style="dim")
        elif row.time:
            seconds = (row.time.rollout, row.time.update, row.time.communication, row.time.step)
            cells = [f"{s:,.3g}" for s in seconds]
            made.add_row(str(row.layout.processes), row.name, *cells, f"{row.tokens_per_s:,.0f}")
    return made


def _short(size: float) -> str:
    """1.5 MiB as 1.5 M."""
    return bytes_text(size).replace("iB", "")


def _micro_batch(row: Row) -> Text:
    """Tokens of the largest that fits ("all": of an optimizer step); red where the one planned with does not."""
    if not row.largest:
        return Text("too big", "red")
    return Text("all" if row.largest >= row.whole else f"<= {row.largest:,}", "" if row.fits else "red")


def _sum(row: Row, head: str) -> int:
    return sum(part.size for part in row.memory.parts if group_of(part.name) == head and not part.host)
