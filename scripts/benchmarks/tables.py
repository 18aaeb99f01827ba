"""The tables on the terminal: one function per mode."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.modes import PARTS

Record = dict[str, Any]


def step(records: Iterable[Record], console: Console) -> None:
    for record in records:
        heads = ("s/step", "lowest", "highest", "rollout", "update", "tokens", "cores", "peak MiB", "above imports")
        table = _table(f"step, {record['shape']}", *heads)
        for e in record["contenders"]:
            parts = [f"{e[p]['median']:.2f}" if p in e else "" for p in ("rollout_s", "update_s")]
            table.add_row(e["name"], *_three(e["seconds"]), *parts, *_work(e), *_memory(e))
        console.print(table)
        _ratios(record["ratios"], console)


def rollout(records: Iterable[Record], console: Console) -> None:
    for record in records:
        heads = ("tokens/s", "lowest", "highest", "tokens", "cores", "seconds", "peak MiB", "above imports")
        table = _table(f"rollout, {record['shape']}", *heads)
        for e in record["contenders"]:
            rates = _three(e["tokens_per_s"], ",.0f")
            table.add_row(e["name"], *rates, *_work(e), f"{e['seconds']['median']:.2f}", *_memory(e))
        console.print(table)
        _ratios(record["ratios"], console)


def update(records: Iterable[Record], console: Console) -> None:
    heads = ("seconds", "tokens/s", "GFLOP/s", "of own layers'", "of the square's", "layers GFLOP/s", "square GFLOP/s")
    table = _table("update: useful arithmetic, against torch.mm in the same run", *heads)
    for record in records:
        table.add_row(
            record["shape"],
            f"{record['seconds']['median']:.2f}",
            f"{record['tokens_per_s']['median']:,.0f}",
            f"{record['gflops']:.1f}",
            f"{record['share_of_layers']:.0%}",
            f"{record['share_of_square']:.0%}",
            f"{record['layers_gflops']:.0f}",
            f"{record['square_gflops']:.0f}",
        )
    console.print(table)


def overhead(records: Iterable[Record], console: Console) -> None:
    names = [part.removesuffix("_s") for part in PARTS]
    table = _table("overhead: share of a step outside its parts", "s/step", *names, "outside", "lowest", "highest")
    for record in records:
        seconds = [f"{record['seconds'][part]['median']:.3f}" for part in ("seconds", *PARTS)]
        table.add_row(record["shape"], *seconds, *_three(record["share_outside"], ".1%"))
    console.print(table)


def memory(record: Record, console: Console) -> None:
    rows = [(s["shape"], e) for s in record["step"] for e in s["contenders"]]
    rows += [("scoring", e) for e in record["scoring"]["contenders"]]
    table = _table("memory, MiB", "", "imports", "loaded", "peak", "above imports", "above loaded")
    for shape, e in rows:
        keys = ("imported_mb", "loaded_mb", "peak_mb", "peak_above_imports_mb", "peak_above_loaded_mb")
        table.add_row(shape, e["name"], *(f"{e[key]:,.0f}" for key in keys))
    console.print(table)
    _ratios(record["scoring"]["ratios"], console)


def scaling(records: Iterable[Record], console: Console) -> None:
    table = _table("scaling: seconds a step", "at", "seconds", "rollout", "update")
    for record in records:
        for point in record["points"]:
            parts = [f"{point[key]['median']:.2f}" for key in ("seconds", "rollout_s", "update_s")]
            table.add_row(record["over"], f"{point['at']:,}", *parts)
    console.print(table)


def ladder(records: Iterable[Record], console: Console) -> None:
    for record in records:
        table = _table(f"ladder, {record['shape']}", "seconds an update", "lowest", "highest")
        for name, seconds in record["seconds"].items():
            table.add_row(name, *_three(seconds, ".3f"))
        console.print(table)
        for r in record["ratios"]:
            console.print(f"  {r['of']} / {r['to']}: {r['ratio']:.2f}", highlight=False)


def learn(record: Record, console: Console) -> None:
    heads = ("seed", "reached", "steps", "samples", "seconds", "s/step", "peak MiB")
    table = _table(f"learn: until held-out greedy reaches {record['goal']:g}", *heads)
    for contender in record["contenders"]:
        for run in contender["runs"]:
            last = run["curve"][-1]
            seconds = (f"{run['seconds']:,.0f}", f"{run['seconds'] / last['step']:.1f}", f"{run['peak_mb']:,.0f}")
            table.add_row(
                contender["name"],
                str(run["seed"]),
                f"{last['greedy']:.2f}",
                f"{last['step']}",
                f"{run['samples']:,}",
                *seconds,
            )
    console.print(table)
    if record["ratios"]:
        text = ", ".join(f"{key.removesuffix('_mb')} {ratio:.2f}x" for key, ratio in record["ratios"].items())
        console.print(f"  medians, TRL / rlhf_pg: {text}", highlight=False)


TABLES: dict[str, Callable[[Any, Console], None]] = {
    "step": step,
    "rollout": rollout,
    "update": update,
    "overhead": overhead,
    "memory": memory,
    "scaling": scaling,
    "ladder": ladder,
    "learn": learn,
}


def notes(record: Record, console: Console) -> None:
    """Print who was left out, and why."""
    for name, how in record["missing"].items():
        console.print(f"{name} left out: {how}", style="yellow", highlight=False, markup=False)
    for name, log in record["failed"].items():
        console.print(f"FAILED and left out: {name}\n{log}", style="red", highlight=False, markup=False)


def _ratios(ratios: Record, console: Console) -> None:
    """Print one line per other contender, and one of the best figures of several."""
    rows = dict(ratios["others"]) | ({"the better of each": ratios["best"]} if len(ratios["others"]) > 1 else {})
    names = {"time": "time", "rollout_s": "rollout", "update_s": "update"}
    names |= {"memory": "peak", "memory_above_imports": "above imports", "memory_above_loaded": "above loaded"}
    for name, r in rows.items():
        text = ", ".join(f"{label} {r[key]:.2f}x" for key, label in names.items() if key in r)
        console.print(f"  {name} / {ratios['to']}: {text}", highlight=False)


def _table(title: str, *heads: str) -> Table:
    table = Table("", title=title, title_justify="left")
    for head in heads:
        table.add_column(head, justify="right")
    return table


def _three(values: dict[str, float], form: str = ".2f") -> list[str]:
    return [format(values[key], form) for key in ("median", "min", "max")]


def _work(e: Record) -> tuple[str, str]:
    return f"{e['tokens']['median']:,.0f}", f"{e['cores']['median']:.1f}"


def _memory(e: Record) -> tuple[str, str]:
    return f"{e['peak_mb']:,.0f}", f"{e['peak_above_imports_mb']:,.0f}"
