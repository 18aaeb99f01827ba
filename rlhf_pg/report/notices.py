"""What a reader of a run should know first, in plain words: what is missing, what failed, what looks unstable."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from rlhf_pg.display.figures import counted, number
from rlhf_pg.display.notices import LEVELS, RISEN, Level, Notice, failures, judged, kl_leap
from rlhf_pg.display.text import visible
from rlhf_pg.report.measures import late
from rlhf_pg.report.run_record import EXPECTED, RunRecord

CHECKED = (
    "non-finite metrics, excluded samples, reward errors and timeouts, truncation, KL spikes, engine mismatch, "
    "collapsed or risen entropy, groups without signal, falling reward, a critic worse than a mean, refused steps"
)

NUMBER = re.compile(r"(?<![\w/@.])-?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?%?(?!\w)")  # not those inside names


def notices(run: RunRecord) -> list[Notice]:
    """Return everything noteworthy about a run, problems first."""
    parts = (_files, _not_finite, _training, _engine, _critic, _trust_region, _gain)
    return sorted((notice for part in parts for notice in part(run)), key=lambda notice: LEVELS.index(notice.level))


def merged(notices_of_runs: dict[str, list[Notice]]) -> list[tuple[list[str], list[Notice]]]:
    """Return [(names of runs, their notices)], the worst first, from the notices of each run.

    Notices that differ only in their numbers become one, which tells the lowest and highest of each number.
    """
    kinds: dict[tuple[Level, str], dict[str, list[str]]] = {}  # (level, text without numbers) -> run -> texts
    for run, notices in notices_of_runs.items():
        for notice in notices:
            texts = kinds.setdefault((notice.level, NUMBER.sub("#", notice.text)), {})
            texts.setdefault(run, []).append(notice.text)
    by_runs: dict[tuple[str, ...], list[Notice]] = {}
    for (level, _), texts in sorted(kinds.items(), key=lambda item: (LEVELS.index(item[0][0]), -len(item[1]))):
        text = _with_ranges([text for each in texts.values() for text in each])
        by_runs.setdefault(tuple(texts), []).append(Notice(level, text))
    return [(list(runs), notices) for runs, notices in by_runs.items()]


def _with_ranges(texts: list[str]) -> str:
    """Return texts that are equal but for their numbers as one."""
    columns = zip(*(NUMBER.findall(text) for text in texts), strict=True)
    ends = [sorted(column, key=lambda n: float(n.replace(",", "").rstrip("%"))) for column in columns]
    ranges = iter(c[0] if c[0] == c[-1] else f"{c[0]} to {c[-1]}" for c in ends)
    return NUMBER.sub(lambda _: next(ranges), texts[0])


def _files(run: RunRecord) -> Iterator[Notice]:
    for file in run.missing:
        yield Notice("note", f"{file} is missing: {EXPECTED[file]}.")
    if run.torn:
        text = "The last line of metrics.jsonl is incomplete (a run still going, or killed); skipped."
        yield Notice("note", text)
    for file, count in run.unreadable.items():
        lines = count - (file == "metrics.jsonl" and run.torn)
        if lines > 0:
            what = f": {counted(lines, 'line')}" if file.endswith(".jsonl") else ""
            yield Notice("warning", f"{file}{what} could not be read; skipped.")
    if "metrics.jsonl" not in run.missing and not run.steps:
        yield Notice("note", "metrics.jsonl has no step yet.")
    if run.steps and not run.evaluation("after") and not run.has_metric("eval/"):
        yield Notice("note", "Nothing was evaluated on held-out problems: only training reward is known.")


def _not_finite(run: RunRecord) -> Iterator[Notice]:
    steps_of: dict[str, list[int]] = {}
    for row in run.steps:
        for key in row:
            value = number(row, key)
            if row[key] is None or (value is not None and not math.isfinite(value)):
                steps_of.setdefault(key, []).append(row["step"])
    for key, steps in steps_of.items():
        where = f"{counted(len(steps), 'step')}, first in step {steps[0]}"
        yield Notice("problem", f"{visible(key)} was not a finite number in {where}.")


def _training(run: RunRecord) -> Iterator[Notice]:
    yield from failures(run.steps)
    tenth = max(1, len(run.steps) // 10)
    first, recent = run.steps[:tenth], run.steps[-tenth:]
    yield from judged(first, recent, "of late steps")
    if leap := kl_leap(run.steps):
        yield leap
    reward = run.values("reward/mean")
    if len(reward) >= 20 and (late(reward) or 0) < (late(reward[::-1]) or 0) - RISEN:
        yield Notice("problem", f"The reward fell, from {late(reward[::-1]):.3f} to {late(reward):.3f}.")


def _engine(run: RunRecord) -> Iterator[Notice]:
    mismatch, share = late(run.values("mismatch/kl")), late(run.values("mismatch/ess"))
    weighted = bool(run.values("mismatch/capped"))
    if weighted and share is not None and share < 0.5:
        left = f"{share:.0%} of the tokens, effectively"
        yield Notice("warning", f"Importance weights leave {left}: rollouts are of too different a policy.")
    if mismatch is not None and mismatch > 0.01 and not weighted:
        text = f"The rollout engine and the trainer disagree on log-probs (KL {mismatch:.3g} per token)."
        yield Notice("warning", text)


def _critic(run: RunRecord) -> Iterator[Notice]:
    explained = run.values("value/explained_variance")
    last = late(explained)
    if last is not None and len(explained) >= 20 and last < 0:
        text = f"The critic still predicts returns worse than their mean would (explained variance {last:.2f})."
        yield Notice("warning", text)


def _trust_region(run: RunRecord) -> Iterator[Notice]:
    accepted, failed = late(run.values("trust/accepted")), sum(run.values("trust/curvature_failed"))
    if failed:
        text = f"In {counted(failed, 'step')} the curvature was not positive and none was taken: raise its damping."
        yield Notice("warning", text)
    if accepted is not None and accepted < 0.8:
        text = f"{1 - accepted:.0%} of late steps were refused: within the limit none improved the surrogate."
        yield Notice("note", text)


def _gain(run: RunRecord) -> Iterator[Notice]:
    before, after = run.evaluation("before"), run.evaluation("after")
    failed = max((number(figures, "failed") or 0 for figures in (before, after)), default=0)
    if failed > 0:
        yield Notice("problem", f"{counted(failed, 'held-out sample')} could not be graded.")
    first, last = _pass_at_1(before), _pass_at_1(after)
    if first is None or last is None:
        return
    if last[2] < first[1]:
        yield Notice("problem", f"Held-out pass@1 fell by {(first[0] - last[0]) * 100:.1f} points.")
    elif last[1] <= first[2]:
        yield Notice("note", "The intervals of pass@1 before and after overlap: the difference may be chance.")


def _pass_at_1(figures: dict[str, Any]) -> tuple[float, float, float] | None:
    """Return pass@1 with the ends of its interval, if all three are there."""
    value, low, high = (number(figures, name) for name in ("pass@1", "pass@1_low", "pass@1_high"))
    return (value, low, high) if value is not None and low is not None and high is not None else None
