"""A run's figures as numbers and as text, shared by the live view and the report. Odd values never raise."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from rlhf_pg.display.text import visible

BOUNDS = ("_low", "_high")  # of an interval


def eval_names(*figures: Iterable[str]) -> list[str]:
    """Return names of held-out figures among keys such as "pass@1", "pass@1_low", "greedy": by k, greedy last."""
    names = {k for keys in figures for k in keys if k == "greedy" or k.startswith("pass@")}
    return sorted((n for n in names if not n.endswith(BOUNDS)), key=lambda n: (n == "greedy", len(n), n))


def eval_text(evals: dict[str, Any]) -> str:
    """Return "pass@1 0.61 [0.55, 0.66]  pass@8 0.90  greedy 0.80", from eval/* keys."""
    names = eval_names(k.removeprefix("eval/") for k in evals if k.startswith("eval/"))
    parts = []
    for name in names:
        low, high = (number(evals, f"eval/{name}{bound}") for bound in BOUNDS)
        interval = f" [{low:.2f}, {high:.2f}]" if low is not None and high is not None else ""
        parts.append(f"{visible(name)} {shown(evals, f'eval/{name}', '.2f')}{interval}")
    return "  ".join(parts)


def number(values: Mapping[str, Any], key: str) -> float | None:
    """Return `values[key]` as a float, NaN included; None when it is missing or no number."""
    value = values.get(key)
    if value is None or isinstance(value, str):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):  # RuntimeError: a tensor of several elements
        return None


def finite(rows: Iterable[Mapping[str, Any]], key: str) -> list[float]:
    """Return the finite values of a metric, line by line."""
    values = [number(row, key) for row in rows if key in row]
    return [value for value in values if value is not None and math.isfinite(value)]


def shown(values: dict[str, Any], key: str, spec: str = ".3f") -> str:
    value = number(values, key)
    return "-" if value is None else str(value) if not math.isfinite(value) else format(value, spec)


def tokens_per_second(metrics: dict[str, Any]) -> float | None:
    """Return generated tokens over the seconds spent generating them; None when one is missing or not finite."""
    # a rollout that overlaps training logs both: then time/rollout_s is only what was waited for
    seconds = number(metrics, "time/generation_s") or number(metrics, "time/rollout_s")
    tokens = number(metrics, "tokens/generated")
    rate = tokens / seconds if tokens is not None and seconds else math.nan
    return rate if math.isfinite(rate) else None


def compact(value: float | None) -> str:
    """Return "1.2k" for 1234.5, "-" for None."""
    if value is None or not math.isfinite(value):
        return "-"
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.1f}{unit}"
    return f"{value:.0f}"


def counted(amount: float, noun: str) -> str:
    """Return "1 step" for (1, "step"), "12,000 steps" for (12000, "step")."""
    return f"{amount:,.0f} {noun}{'' if amount == 1 else 's'}"


def clock(seconds: float | None) -> str:
    """Return seconds as m:ss or h:mm:ss, "-" for None."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def duration(seconds: float | None) -> str:
    """Return "5 min 1 s" for 301.4, "2 h 3 min" for 7384, "–" for None."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def cut(text: str, characters: int) -> str:
    """Return at most `characters` of `text`, its middle replaced by an ellipsis; the answer is usually at the end."""
    half = characters // 2
    return text if len(text) <= characters else f"{text[:half]} … {text[-half:]}"
