"""What a reader of a run should know first, in plain words: what is missing, what failed, what looks unstable."""

from __future__ import annotations

import math
import re
import statistics
from dataclasses import dataclass
from typing import Any, Literal

from rlhf_pg.display.figures import counted, number
from rlhf_pg.display.text import visible
from rlhf_pg.report.run_data import EXPECTED, Run, section, series

CHECKED = (
    "non-finite metrics, excluded samples, reward errors and timeouts, truncation, KL spikes, engine mismatch, "
    "collapsed entropy, groups without signal, falling reward, a critic worse than a mean, refused steps"
)

Level = Literal["problem", "warning", "note"]
LEVELS = ("problem", "warning", "note")
NUMBER = re.compile(r"(?<![\w/@.])-?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?%?(?!\w)")  # not those inside names


@dataclass(frozen=True)
class Notice:
    level: Level
    text: str


def notices(run: Run) -> list[Notice]:
    """Everything noteworthy about a run, problems first."""
    found = [
        *_files(run),
        *_not_finite(run),
        *_outcomes(run),
        *_training(run),
        *_critic(run),
        *_trust_region(run),
        *_gain(run),
    ]
    return sorted(found, key=lambda n: LEVELS.index(n.level))


def merged(told: dict[str, list[Notice]]) -> list[tuple[list[str], list[Notice]]]:
    """[(names of runs, their notices)], the worst first, from the notices of each run.

    Notices that differ only in their numbers become one, which tells the lowest and highest of each number.
    """
    kinds: dict[tuple[Level, str], dict[str, list[str]]] = {}
    for run, found in told.items():
        for notice in found:
            texts = kinds.setdefault((notice.level, NUMBER.sub("#", notice.text)), {})
            texts.setdefault(run, []).append(notice.text)
    under: dict[tuple[str, ...], list[Notice]] = {}
    for (level, _), texts in sorted(kinds.items(), key=lambda item: (LEVELS.index(item[0][0]), -len(item[1]))):
        ranges = _ranges([text for each in texts.values() for text in each])
        under.setdefault(tuple(texts), []).append(Notice(level, ranges))
    return [(list(who), found) for who, found in under.items()]


def _ranges(texts: list[str]) -> str:
    """Texts that are equal but for their numbers as one."""
    columns = zip(*(NUMBER.findall(text) for text in texts), strict=True)
    ends = [sorted(column, key=lambda n: float(n.replace(",", "").rstrip("%"))) for column in columns]
    told = iter(c[0] if c[0] == c[-1] else f"{c[0]} to {c[-1]}" for c in ends)
    return NUMBER.sub(lambda _: next(told), texts[0])


def late(values: list[float]) -> float | None:
    """Mean of the last tenth (at least one value); None when empty."""
    return statistics.fmean(values[-max(1, len(values) // 10) :]) if values else None


def values(run: Run, key: str) -> list[float]:
    return [y for _, y in series(run, key) if y is not None]


def _files(run: Run) -> list[Notice]:
    found = [Notice("note", f"{file} is missing: {EXPECTED[file]}.") for file in run.missing]
    if run.torn:
        found.append(
            Notice("note", "The last line of metrics.jsonl is incomplete (a run still going, or killed); skipped.")
        )
    for file, count in run.unreadable.items():
        lines = count - (file == "metrics.jsonl" and run.torn)
        if lines > 0:
            what = f": {counted(lines, 'line')}" if file.endswith(".jsonl") else ""
            found.append(Notice("warning", f"{file}{what} could not be read; skipped."))
    if "metrics.jsonl" not in run.missing and not run.steps:
        found.append(Notice("note", "metrics.jsonl has no step yet."))
    if run.steps and not section(run, "after") and not any(k.startswith("eval/") for r in run.steps for k in r):
        found.append(Notice("note", "Nothing was evaluated on held-out problems: only training reward is known."))
    return found


def _not_finite(run: Run) -> list[Notice]:
    bad: dict[str, list[int]] = {}
    for row in run.steps:
        for key in row:
            value = number(row, key)
            if row[key] is None or (value is not None and not math.isfinite(value)):
                bad.setdefault(key, []).append(row["step"])
    return [
        Notice(
            "problem",
            f"{visible(key)} was not a finite number in {counted(len(steps), 'step')}, first in step {steps[0]}.",
        )
        for key, steps in bad.items()
    ]


def _outcomes(run: Run) -> list[Notice]:
    totals = outcome_totals(run)
    everything = sum(totals.values())
    texts: dict[str, tuple[Literal["problem", "warning"], str]] = {
        "error": ("problem", "the reward function failed; they were left out of training"),
        "timeout": ("warning", "the reward took too long; they were left out of training"),
        "excluded": ("warning", "the reward function asked to leave them out of training"),
    }
    found = [
        Notice(
            texts[name][0], f"{counted(totals[name], 'sample')} ({totals[name] / everything:.1%}): {texts[name][1]}."
        )
        for name in texts
        if totals.get(name)
    ]
    excluded = sum(values(run, "samples/excluded"))
    known = sum(totals.get(name, 0) for name in texts)
    if excluded > known:
        found.append(
            Notice(
                "warning", f"{counted(excluded - known, 'more sample')} had no reward and were left out of training."
            )
        )
    return found


def outcome_totals(run: Run) -> dict[str, float]:
    """outcome -> samples of the whole run, largest first."""
    names = {k for row in run.steps for k in row if k.startswith("outcome/")}
    totals = {name.removeprefix("outcome/"): sum(values(run, name)) for name in names}
    return dict(sorted(totals.items(), key=lambda item: (-item[1], item[0])))


def _training(run: Run) -> list[Notice]:
    found = []
    truncated = late(values(run, "completion/truncated"))
    if truncated is not None and truncated > 0.2:
        found.append(
            Notice("warning", f"{truncated:.0%} of late completions were cut off: raise rollout.max_new_tokens.")
        )
    spike = _spike(run)
    if spike:
        found.append(Notice("warning", spike))
    mismatch, share = late(values(run, "mismatch/kl")), late(values(run, "mismatch/ess"))
    weighed = late(values(run, "mismatch/capped")) is not None
    if weighed and share is not None and share < 0.5:
        text = (
            f"Importance weights leave {share:.0%} of the tokens, effectively: rollouts are of too different a policy."
        )
        found.append(Notice("warning", text))
    if mismatch is not None and mismatch > 0.01 and not weighed:
        found.append(
            Notice(
                "warning", f"The rollout engine and the trainer disagree on log-probs (KL {mismatch:.3g} per token)."
            )
        )
    flat = late(values(run, "reward/zero_std_groups"))
    if flat is not None and 0.8 < flat <= 1:
        found.append(
            Notice(
                "note",
                f"{flat:.0%} of late groups had equal rewards and gave no gradient: the problems are too easy or hard.",
            )
        )
    entropy, reward = values(run, "entropy"), values(run, "reward/mean")
    if len(entropy) >= 10 and (late(entropy) or 0) < 0.05 * (late(entropy[::-1]) or 0):
        found.append(Notice("note", f"Entropy fell to {late(entropy):.3g}: there is little left to explore."))
    if len(reward) >= 20 and (late(reward) or 0) < (late(reward[::-1]) or 0) - 0.02:
        found.append(Notice("problem", f"The reward fell, from {late(reward[::-1]):.3f} to {late(reward):.3f}."))
    return found


def _critic(run: Run) -> list[Notice]:
    explained = values(run, "value/explained_variance")
    found = late(explained)
    if found is None or len(explained) < 20 or found >= 0:
        return []
    text = f"The critic still predicts returns worse than their mean would (explained variance {found:.2f})."
    return [Notice("warning", text)]


def _trust_region(run: Run) -> list[Notice]:
    found = []
    accepted, failed = late(values(run, "trust/accepted")), sum(values(run, "trust/curvature_failed"))
    if failed:
        text = f"In {counted(failed, 'step')} the curvature was not positive and none was taken: raise its damping."
        found.append(Notice("warning", text))
    if accepted is not None and accepted < 0.8:
        text = f"{1 - accepted:.0%} of late steps were refused: within the limit none improved the surrogate."
        found.append(Notice("note", text))
    return found


def _spike(run: Run) -> str:
    """KL that leaps to more than ten times the highest of the 5 steps before it (and above 0.05)."""
    points = [(x, y) for x, y in series(run, "kl/ref") if y is not None]
    kl = [y for _, y in points]
    spikes = [i for i in range(5, len(kl)) if kl[i] > max(10 * max(kl[i - 5 : i]), 0.05)]
    if not spikes:
        return ""
    worst = max(spikes, key=lambda i: kl[i])
    steps = counted(len(spikes), "step")
    return f"KL to the reference leapt in {steps}, highest {kl[worst]:.3g} in step {points[worst][0]:.0f}."


def _gain(run: Run) -> list[Notice]:
    before, after = section(run, "before"), section(run, "after")
    found = []
    failed = max((number(part, "failed") or 0 for part in (before, after)), default=0)
    if failed > 0:
        found.append(Notice("problem", f"{counted(failed, 'held-out sample')} could not be graded."))
    first, last = _figure(before), _figure(after)
    if first is None or last is None:
        return found
    if last[2] < first[1]:
        found.append(Notice("problem", f"Held-out pass@1 fell by {(first[0] - last[0]) * 100:.1f} points."))
    elif last[1] <= first[2]:
        found.append(Notice("note", "The intervals of pass@1 before and after overlap: the difference may be chance."))
    return found


def _figure(part: dict[str, Any]) -> tuple[float, float, float] | None:
    """pass@1 with the ends of its interval, if all three are there."""
    value, low, high = number(part, "pass@1"), number(part, "pass@1_low"), number(part, "pass@1_high")
    return (value, low, high) if value is not None and low is not None and high is not None else None
