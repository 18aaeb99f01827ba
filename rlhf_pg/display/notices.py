"""What a person at a run should be told, worked out from lines of metrics.jsonl: while it goes on, and in its report.

A rule takes lines, oldest first, and `when`, words for the steps they are of. It returns a `Notice` or None.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rlhf_pg.display.figures import counted, finite, number
from rlhf_pg.display.text import visible

Level = Literal["problem", "warning", "note"]
LEVELS = ("problem", "warning", "note")
Row = Mapping[str, Any]

WINDOW = 3  # steps that are judged together while a run goes on
FIRST_JUDGED = 2  # step: one alone may be chance
SPIKE_AFTER = 5  # steps that KL is compared with
FEW = 0.2  # share of completions that may be cut off
NEARLY_ALL = 0.9  # share of groups: a tenth with signal is enough to learn from
RISEN = 0.02  # of the mean reward: less is chance
LEFT_OUT: dict[str, tuple[Level, str]] = {  # outcome -> why a sample has no reward
    "error": ("problem", "the reward function failed; they were left out of training"),
    "timeout": ("warning", "the reward took too long; they were left out of training"),
    "excluded": ("note", "the reward function asked to leave them out of training"),
}
EASIER = (
    "Easier problems help, or a further reward for the form of the answer, or to start from worked solutions "
    "(rlhf-pg sft)"
)


@dataclass(frozen=True)
class Notice:
    level: Level
    text: str
    kind: str = ""  # of those that a run shows once


class Watch:
    """What has been said in a run, and the lines that are needed to judge its next step."""

    def __init__(self, earlier: Sequence[Row] = ()) -> None:
        """`earlier`: the lines of the steps before a resume, whose notices were shown."""
        self.first: list[Row] = []
        self.last: deque[Row] = deque(maxlen=SPIKE_AFTER + 1)
        self.shown: set[str] = set()
        for row in earlier:
            self.step(row)

    def step(self, row: Row, cause: str = "") -> list[Notice]:
        """Take the line of a step; return what is worth a warning and was not returned before.

        cause: why the first of the step's failed samples failed.
        """
        self.first += [row] if len(self.first) < WINDOW else []
        self.last.append(row)
        found = [notice for notice in self._found(row, cause) if notice.level != "note"]
        fresh = [notice for notice in found if notice.kind not in self.shown]
        self.shown |= {notice.kind for notice in fresh}
        return fresh

    def _found(self, row: Row, cause: str) -> Iterator[Notice]:
        yield from failures([row], f"of step {row['step']}", cause)
        recent = list(self.last)[-WINDOW:]
        if row["step"] < FIRST_JUDGED or len(recent) < FIRST_JUDGED:
            return
        when = f"of steps {recent[0]['step']} to {recent[-1]['step']}"
        yield from judged(self.first, recent, when)
        leap = kl_leap(list(self.last))
        yield from [leap] if leap else []


def judged(first: Sequence[Row], recent: Sequence[Row], when: str) -> Iterator[Notice]:
    """Yield what the `recent` lines show, beside the `first` of the run."""
    for notice in (signal(first, recent, when), truncation(first, recent, when), entropy(first, recent, when)):
        if notice:
            yield notice


def signal(first: Sequence[Row], recent: Sequence[Row], when: str) -> Notice | None:
    """Tell that all rewards are equal, or those within nearly every group: a note if the reward rose until then."""
    rewards, spread = finite(recent, "reward/mean"), finite(recent, "reward/std")
    flat = _mean(finite(recent, "reward/zero_std_groups"))
    if not rewards:
        return None
    mean = statistics.fmean(rewards)
    if len(spread) == len(rewards) and not any(spread) and len({*rewards}) == 1:
        what = f"Every reward {when} was {rewards[0]:g}: there was nothing to learn from"
        hard = rewards[0] <= 0
    elif flat is not None and flat > NEARLY_ALL:
        what = f"{flat:.0%} of the groups {when} had equal rewards (mean {mean:.3g}): there was little to learn from"
        hard = mean < 0.5
    else:
        return None
    if mean > (_mean(finite(first, "reward/mean")) or 0) + RISEN:
        return Notice("note", f"{what}. What they teach was learned: harder problems have more.", "no signal: learned")
    if hard:
        return Notice("warning", f"{what}. {EASIER}.", "no signal: hard")
    return Notice("warning", f"{what}. If these are right answers, use harder problems.", "no signal: easy")


def truncation(first: Sequence[Row], recent: Sequence[Row], when: str) -> Notice | None:
    """Tell that completions are cut off, where that costs reward or there is none to be seen."""
    cut = _mean(finite(recent, "completion/truncated"))
    if cut is None or cut <= FEW:
        return None
    samples, unanswered = sum(map(_samples, recent)), sum(finite(recent, "outcome/truncated"))
    cost, spread = _mean(finite(recent, "completion/truncation_cost")), _mean(finite(recent, "reward/std"))
    ended = (1 - cut) * samples
    blind = signal(first, recent, when)
    if samples and unanswered > FEW * samples:
        why = ", most of them before an answer" if unanswered > 0.5 * cut * samples else ", many before an answer"
    elif cost is not None and spread and cost > spread * max(0.5, 3 / math.sqrt(max(ended, 1))):  # more than chance
        why = f", and earned {cost:.2g} less than the others"
    elif blind and blind.level != "note":
        why = ""
    else:
        return None
    text = f"{cut:.0%} of the completions {when} were cut off{why}: raise rollout.max_new_tokens."
    return Notice("warning", text, "truncation")


def entropy(first: Sequence[Row], recent: Sequence[Row], when: str) -> Notice | None:
    """Tell that entropy fell to a 20th or rose to three times what it was, without a higher reward."""
    values = [_mean(finite(rows, key)) for key in ("entropy", "reward/mean") for rows in (first, recent)]
    before, now, reward, reward_now = values
    if before is None or now is None or reward is None or reward_now is None or reward_now > reward + RISEN:
        return None
    if now < 0.05 * before:
        text = (
            f"Entropy fell from {before:.3g} to {now:.3g} {when}, and the reward did not rise: samples hardly differ, "
            "so there is little left to explore. Lower optimizer.lr, or raise kl.coefficient."
        )
        return Notice("warning", text, "entropy: collapse")
    if now > 3 * before and now > 1:
        text = (
            f"Entropy rose from {before:.3g} to {now:.3g} {when}, and the reward did not: the policy comes apart. "
            "Lower optimizer.lr, or raise kl.coefficient."
        )
        return Notice("warning", text, "entropy: rise")
    return None


def kl_leap(rows: Sequence[Row]) -> Notice | None:
    """Tell of KL that leaps to more than ten times the highest of the 5 steps before it (and above 0.05)."""
    points = [(int(row["step"]), kl) for row in rows for kl in finite([row], "kl/ref")]
    leaps = [
        (kl, step)
        for i, (step, kl) in enumerate(points)
        if i >= SPIKE_AFTER and kl > max(10 * max(y for _, y in points[i - SPIKE_AFTER : i]), 0.05)
    ]
    if not leaps:
        return None
    kl, step = max(leaps)
    steps = counted(len(leaps), "step")
    text = f"KL to the reference leapt in {steps}, highest {kl:.3g} in step {step}: lower optimizer.lr if it stays up."
    return Notice("warning", text, "kl")


def failures(rows: Sequence[Row], when: str = "", cause: str = "") -> Iterator[Notice]:
    """Yield how many samples have no reward, by the reason. `cause`: the first failure in the reward's words."""
    totals, samples = outcome_totals(rows), sum(map(_samples, rows))
    excluded = sum(finite(rows, "samples/excluded")) if any("samples/excluded" in row for row in rows) else None
    when, explained = f" {when}" if when else "", False
    for name, (level, why) in LEFT_OUT.items():
        count = totals.get(name, 0)
        if not count:
            continue
        if name == "timeout" and excluded == 0:
            why = "the reward took too long; they got the reward it sets for that"
        if name == "excluded" and count > 0.5 * samples:
            level = "warning"
        first = "" if explained or not cause or name == "excluded" else f" The first: {visible(cause)}"
        explained = explained or bool(first)
        yield Notice(level, f"{counted(count, 'sample')}{when} ({count / samples:.1%}): {why}.{first}", name)
    more = (excluded or 0) - sum(totals.get(name, 0) for name in LEFT_OUT)
    if more > 0:
        text = f"{counted(more, 'more sample')}{when} had no reward and were left out of training."
        yield Notice("warning", text, "more left out")


def outcome_totals(rows: Sequence[Row]) -> dict[str, float]:
    """Return outcome -> samples of all lines, largest first."""
    totals: Counter[str] = Counter()
    for key in sorted({key for row in rows for key in row if key.startswith("outcome/")}):
        totals[key.removeprefix("outcome/")] = sum(finite(rows, key))  # pyright: ignore[reportArgumentType]
    return dict(sorted(totals.items(), key=lambda item: (-item[1], item[0])))


def _samples(row: Row) -> float:
    return sum(number(row, key) or 0 for key in row if key.startswith("outcome/"))


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None
