"""What a person sees in the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table

Comparison = dict[str, Any]


def step(found: Iterable[Comparison], console: Console) -> None:
    for one in found:
        heads = (
            "seconds a step",
            "lowest",
            "highest",
            "rollout",
            "update",
            "tokens",
            "cores",
            "peak MiB",
            "above imports",
        )
        table = _table(f"step, {one['shape']}", *heads)
        for e in one["contenders"]:
            parts = [f"{e[p]['median']:.2f}" if p in e else "" for p in ("rollout_s", "update_s")]
            memory = (f"{e['peak_mb']:,.0f}", f"{e['peak_above_imports_mb']:,.0f}")
            table.add_row(e["name"], *_seconds(e), *parts, *_work(e), *memory)
        console.print(table)
        ratios(one, console)


def rollout(found: Iterable[Comparison], console: Console) -> None:
    for one in found:
        table = _table(
            f"rollout, {one['shape']}", "tokens/s", "lowest", "highest", "tokens", "cores", "seconds", "peak MiB"
        )
        for e in one["contenders"]:
            rates = [f"{e['tokens_per_s'][key]:,.0f}" for key in ("median", "min", "max")]
            rest = (*_work(e), f"{e['seconds']['median']:.2f}", f"{e['peak_mb']:,.0f}")
            table.add_row(e["name"], *rates, *rest)
        console.print(table)
        ratios(one, console)


def ladder(found: Iterable[Comparison], console: Console) -> None:
    for one in found:
        table = _table(f"ladder, {one['shape']}", "seconds an update", "lowest", "highest")
        for name, seconds in one["seconds"].items():
            table.add_row(name, *(f"{seconds[key]:.3f}" for key in ("median", "min", "max")))
        console.print(table)
        for r in one["ratios"]:
            console.print(f"  {r['of']} / {r['to']}: {r['ratio']:.2f}", highlight=False)


def ratios(one: Comparison, console: Console) -> None:
    """One line per other contender, and the best of several."""
    found = one["ratios"]
    rows = dict(found["others"]) | ({"the better of each": found["best"]} if len(found["others"]) > 1 else {})
    for name, r in rows.items():
        memory = f"memory {r['memory']:.2f}x (above imports {r['memory_above_imports']:.2f}x)"
        console.print(f"  {name} / {found['to']}: time per token {r['time']:.2f}x, {memory}", highlight=False)


def notes(record: dict[str, Any], console: Console) -> None:
    """Who was left out, and why."""
    for name, how in record["missing"].items():
        console.print(f"[yellow]{name} left out: {how}", highlight=False)
    for name, log in record["failed"].items():
        console.print(f"[red]{name} failed and is left out.[/] {log}", highlight=False, markup=True)


def _table(title: str, *heads: str) -> Table:
    table = Table("", title=title, title_justify="left")
    for head in heads:
        table.add_column(head, justify="right")
    return table


def _seconds(e: dict[str, Any]) -> list[str]:
    return [f"{e['seconds'][key]:.2f}" for key in ("median", "min", "max")]


def _work(e: dict[str, Any]) -> tuple[str, str]:
    return f"{e['tokens']['median']:,.0f}", f"{e['cores']['median']:.1f}"
