"""What `rlhf-pg rewards check` and `score` print of a reward function and its scores."""

from __future__ import annotations

import statistics
from collections import Counter
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from rlhf_pg.rewards import plugin
from rlhf_pg.types import Sample, Score


def describe(console: Console, reward: plugin.Reward) -> None:
    """Print where a function is, how it is called, and with what."""
    kind = "once per batch" if reward.batched else "per sample"
    needs = ", ".join(reward.arguments) or "nothing"
    optional = f"; if there: {', '.join(reward.optional)}" if reward.optional else ""
    rest = "; and every other column" if reward.takes_rest else ""
    console.print(f"{reward.name}: {reward.module}:{reward.function}", markup=False, soft_wrap=True)
    console.print(
        f"called {kind}{' (async)' if reward.is_async else ''}, limit {reward.timeout_s:g} s, {reward.memory_mb} MB",
        markup=False,
    )
    console.print(f"gets {needs}{optional}{rest}", markup=False)
    if reward.args:
        console.print("always with " + ", ".join(f"{n}={v!r}" for n, v in reward.args.items()), markup=False)


def summary(reward: plugin.Reward, scores: list[Score], out: Path) -> list[str]:
    """Return the mean, of each part too, how many rows have which outcome, and where the scores are."""
    rewards = [s.reward for s in scores if s.reward is not None]
    mean = f"mean {statistics.fmean(rewards):.4g}" if rewards else "no mean"
    without = len(scores) - len(rewards)
    counted = f"{len(rewards)} of {len(scores)} rows" + (f" ({without} have no reward)" if without else "")
    lines = [f"{reward.name}: {mean} over {counted}"]
    for part in dict.fromkeys(name for s in scores for name in s.parts if name != reward.name):
        values = [value for s in scores if (value := s.parts.get(part)) is not None]
        lines += [f"{part}: mean {statistics.fmean(values):.4g} over {len(values)} rows"] if values else []
    outcomes = Counter(s.outcome for s in scores).most_common()
    lines.append(f"outcomes: {', '.join(f'{count} {outcome}' for outcome, count in outcomes)}")
    first = next((s.detail for s in scores if s.reward is None and s.detail), "")
    return [*lines, *([f"the first without a reward: {first}"] if first else []), f"written: {out}"]


def table(row_numbers: list[int], samples: list[Sample], scores: list[Score]) -> Table:
    """Return a row per scored text: the end of it, the gold answer, the reward and its parts, the outcome."""
    golds = [sample.columns.get("answer") for sample in samples]
    parts = ["\n".join(f"{n.partition('/')[2]} {_figure(v)}" for n, v in s.parts.items() if "/" in n) for s in scores]
    columns: dict[str, list[str]] = {
        "row": [str(number) for number in row_numbers],
        "completion": [_end(sample.completion, 40) for sample in samples],
        "gold": ["" if gold is None else _end(str(gold), 20) for gold in golds],
        "reward": [_figure(s.reward) for s in scores],
        "parts": [printable(text) for text in parts],
        "outcome": [s.outcome for s in scores],
    }
    shown = {name: cells for name, cells in columns.items() if any(cells)}
    table = Table(box=SIMPLE, pad_edge=False)
    for name in shown:
        table.add_column(name, justify="right" if name in ("row", "reward") else "left")
    for cells in zip(*shown.values(), strict=True):
        table.add_row(*cells)
    return table


def printable(text: str) -> str:
    """Return any text as printable characters without rich's markup."""
    return text.encode("utf-8", "backslashreplace").decode().replace("[", r"\[")


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _end(text: str, length: int) -> str:
    """Return the last characters of a text in one line, where answers are."""
    line = " ".join(text.split())
    return printable(line if len(line) <= length else f"...{line[3 - length :]}")
