"""What a person sees in the terminal: one function per mode."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.modes import PARTS

Found = dict[str, Any]


def step(found: Iterable[Found], console: Console) -> None:
    for one in found:
        heads = ("s/step", "lowest", "highest", "rollout", "update", "tokens", "cores", "peak MiB", "above imports")
        table = _table(f"step, {one['shape']}", *heads)
        for e in one["contenders"]:
            parts = [f"{e[p]['median']:.2f}" if p in e else "" for p in ("rollout_s", "update_s")]
            table.add_row(e["name"], *_three(e["seconds"]), *parts, *_work(e), *_memory(e))
        console.print(table)
        _ratios(one["ratios"], console)


def rollout(found: Iterable[Found], console: Console) -> None:
    for one in found:
        heads = ("tokens/s", "lowest", "highest", "tokens", "cores", "seconds", "peak MiB", "above imports")
        table = _table(f"rollout, {one['shape']}", *heads)
        for e in one["contenders"]:
            rates = _three(e["tokens_per_s"], ",.0f")
            table.add_row(e["name"], *rates, *_work(e), f"{e['seconds']['median']:.2f}", *_memory(e))
        console.print(table)
        _ratios(one["ratios"], console)


def update(found: Iterable[Found], console: Console) -> None:
    heads = ("seconds", "tokens/s", "GFLOP/s", "of own layers'", "of the square's", "layers GFLOP/s", "square GFLOP/s")
    table = _table("update: useful arithmetic, against torch.mm in the same run", *heads)
    for one in found:
        table.add_row(
            one["shape"],
            f"{one['seconds']['median']:.2f}",
            f"{one['tokens_per_s']['median']:,.0f}",
            f"{one['gflops']:.1f}",
            f"{one['share_of_layers']:.0%}",
            f"{one['share_of_square']:.0%}",
            f"{one['layers_gflops']:.0f}",
            f"{one['square_gflops']:.0f}",
        )
    console.print(table)


def overhead(found: Iterable[Found], console: Console) -> None:
    names = [part.removesuffix("_s") for part in PARTS]
    table = _table("overhead: share of a step outside its parts", "s/step", *names, "outside", "lowest", "highest")
    for one in found:
        seconds = [f"{one['seconds'][part]['median']:.3f}" for part in ("seconds", *PARTS)]
        table.add_row(one["shape"], *seconds, *_three(one["share_outside"], ".1%"))
    console.print(table)


def memory(found: Found, console: Console) -> None:
    rows = [(s["shape"], e) for s in found["step"] for e in s["contenders"]]
    rows += [("scoring", e) for e in found["scoring"]["contenders"]]
    table = _table("memory, MiB", "", "imports", "loaded", "peak", "above imports", "above loaded")
    for shape, e in rows:
        keys = ("imported_mb", "loaded_mb", "peak_mb", "peak_above_imports_mb", "peak_above_loaded_mb")
        table.add_row(shape, e["name"], *(f"{e[key]:,.0f}" for key in keys))
    console.print(table)
    _ratios(found["scoring"]["ratios"], console)


def scaling(found: Iterable[Found], console: Console) -> None:
    table = _table("scaling: seconds a step", "at", "seconds", "rollout", "update")
    for one in found:
        for point in one["points"]:
            parts = [f"{point[key]['median']:.2f}" for key in ("seconds", "rollout_s", "update_s")]
            table.add_row(one["over"], f"{point['at']:,}", *parts)
    console.print(table)


def ladder(found: Iterable[Found], console: Console) -> None:
    for one in found:
        table = _table(f"ladder, {one['shape']}", "seconds an update", "lowest", "highest")
        for name, seconds in one["seconds"].items():
            table.add_row(name, *_three(seconds, ".3f"))
        console.print(table)
        for r in one["ratios"]:
            console.print(f"  {r['of']} / {r['to']}: {r['ratio']:.2f}", highlight=False)


TABLES: dict[str, Callable[[Any, Console], None]] = {
    "step": step,
    "rollout": rollout,
    "update": update,
    "overhead": overhead,
    "memory": memory,
    "scaling": scaling,
    "ladder": ladder,
}


def notes(record: Found, console: Console) -> None:
    """Who was left out, and why."""
    for name, how in record["missing"].items():
        console.print(f"{name} left out: {how}", style="yellow", highlight=False, markup=False)
    for name, log in record["failed"].items():
        console.print(f"FAILED and left out: {name}\n{log}", style="red", highlight=False, markup=False)


def _ratios(found: Found, console: Console) -> None:
    """One line per other contender, and the best of several."""
    rows = dict(found["others"]) | ({"the better of each": found["best"]} if len(found["others"]) > 1 else {})
    names = {"time": "time", "rollout_s": "rollout", "update_s": "update"}
    names |= {"memory": "peak", "memory_above_imports": "above imports", "memory_above_loaded": "above loaded"}
    for name, r in rows.items():
        text = ", ".join(f"{label} {r[key]:.2f}x" for key, label in names.items() if key in r)
        console.print(f"  {name} / {found['to']}: {text}", highlight=False)


def _table(title: str, *heads: str) -> Table:
    table = Table("", title=title, title_justify="left")
    for head in heads:
        table.add_column(head, justify="right")
    return table


def _three(values: dict[str, float], form: str = ".2f") -> list[str]:
    return [format(values[key], form) for key in ("median", "min", "max")]


def _work(e: Found) -> tuple[str, str]:
    return f"{e['tokens']['median']:,.0f}", f"{e['cores']['median']:.1f}"


def _memory(e: Found) -> tuple[str, str]:
    return f"{e['peak_mb']:,.0f}", f"{e['peak_above_imports_mb']:,.0f}"
