"""Medians and ratios of the answers of contenders: arithmetic on Python numbers."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.race import Measured

OURS = "rlhf_pg"
PARTS = ("rollout_s", "update_s")  # of a step
MEMORIES = {
    "memory": "peak_mb",
    "memory_above_imports": "peak_above_imports_mb",
    "memory_above_loaded": "peak_above_loaded_mb",
}
Entry = dict[str, Any]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, lowest and highest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def entry(name: str, measured: Measured, case: str = "") -> Entry:
    """Return one contender's figures; `rounds` has every answer unchanged."""
    rounds = measured.rounds[case]
    figures: Entry = {
        "name": name,
        "seconds": spread([r["seconds"] for r in rounds]),
        "threads": measured.ready["threads"],
        "imported_mb": measured.ready["imported_mb"],
        "peak_mb": measured.peak_mb,
        "loaded_mb": measured.ready["loaded_mb"],
        "peak_above_imports_mb": measured.peak_mb - measured.ready["imported_mb"],
        "peak_above_loaded_mb": measured.peak_mb - measured.ready["loaded_mb"],
        "rounds": rounds,
    }
    if all("tokens" in r for r in rounds):
        figures["tokens"] = spread([r["tokens"] for r in rounds])
        figures["ms_per_token"] = spread([1000 * r["seconds"] / r["tokens"] for r in rounds])
        figures["tokens_per_s"] = spread([r["tokens"] / r["seconds"] for r in rounds])
    for part in (*PARTS, "cores"):
        if all(part in r for r in rounds):
            figures[part] = spread([r[part] for r in rounds])
    return figures


def compare(entries: Sequence[Entry], ours: str = OURS) -> dict[str, Any]:
    """Return how many times the time and memory of `ours` each other contender takes, and the best of them.

    Time is per token where tokens were counted, so that contenders that drew longer completions are not the slower
    for it. `best` has the lowest ratio of each column, which may be different contenders'.
    """
    by_name = {e["name"]: e for e in entries}
    if ours not in by_name:
        return {"to": ours, "others": {}, "best": {}}
    base = by_name.pop(ours)
    others = {name: ratios(other, base) for name, other in by_name.items()}
    columns = {column for r in others.values() for column in r}
    best = {column: min(r[column] for r in others.values() if column in r) for column in sorted(columns)}
    return {"to": ours, "others": others, "best": best}


def ratios(other: Entry, base: Entry) -> dict[str, float]:
    """Return time, memory, and the parts of a step where both have them; no ratio to a memory of 0."""
    values = {"time": time_of(other) / time_of(base)}
    for name, key in MEMORIES.items():
        if base[key] > 0:
            values[name] = other[key] / base[key]
    tokens = [e["tokens"]["median"] if "tokens" in e else 1 for e in (other, base)]
    for part in PARTS:
        if part in other and part in base:
            values[part] = other[part]["median"] / tokens[0] / (base[part]["median"] / tokens[1])
    return values


def time_of(entry: Entry) -> float:
    """Return the figure of which time ratios are taken."""
    return entry["ms_per_token" if "ms_per_token" in entry else "seconds"]["median"]


def share_outside(rounds: Sequence[dict[str, Any]], parts: Sequence[str]) -> dict[str, float]:
    """Return the share of each round's seconds that is in none of its `parts`: median, lowest, highest."""
    return spread([1 - sum(r[part] for part in parts) / r["seconds"] for r in rounds])


def harmonic_rate(amounts: Sequence[float], rates: Sequence[float]) -> float:
    """Return the rate of doing all amounts one after the other, each at its rate."""
    return sum(amounts) / sum(a / r for a, r in zip(amounts, rates, strict=True))
