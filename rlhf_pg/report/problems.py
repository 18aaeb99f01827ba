"""Held-out problems one by one: how many samples were right in each evaluation, from eval.jsonl."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlhf_pg.display.figures import counted, number
from rlhf_pg.report.run_record import RunRecord


@dataclass(frozen=True)
class Count:
    """One problem in one evaluation: `correct` of `n` samples; `greedy`: whether the greedy one is, None without it."""

    n: int
    correct: int
    greedy: bool | None


@dataclass(frozen=True)
class Problem:
    id: str
    prompt: str
    answer: str | None
    counts: dict[int, Count]  # step -> as evaluated then


@dataclass(frozen=True)
class Problems:
    """`steps` of the evaluations, ascending; problems in the order of the first."""

    steps: list[int]
    problems: list[Problem]

    def summary(self) -> str:
        """Say how many problems were gained and lost between the first and the last evaluation, "" without two."""
        if len(self.steps) < 2:
            return f"{counted(len(self.problems), 'problem')}, evaluated once so far." if self.problems else ""
        first, last = self.steps[0], self.steps[-1]
        both = [(p.counts[first], p.counts[last]) for p in self.problems if {first, last} <= p.counts.keys()]
        moves = [b.correct / b.n - a.correct / a.n for a, b in both if a.n and b.n]
        never = sum(b.n > 0 and b.correct == 0 for _, b in both)
        gained, lost = sum(move > 0 for move in moves), sum(move < 0 for move in moves)
        greedy = [(a.greedy, b.greedy) for a, b in both if a.greedy is not None and b.greedy is not None]
        new, no_more = sum(b and not a for a, b in greedy), sum(a and not b for a, b in greedy)
        start = "before training" if first == 0 else f"step {first}"
        text = f"From {start} to step {last}: {gained} gained, {lost} lost, {len(moves) - gained - lost} unchanged, by "
        text += f"the share of samples that are right; {never} not solved by any sample at the end."
        return text + (f" Greedy: {new} newly right, {no_more} no longer." if greedy else "")

    def as_json(self) -> dict[str, Any]:
        rows = []
        for p in self.problems:
            counts = [p.counts.get(step) for step in self.steps]
            cells = [[c.n, c.correct, c.greedy] if c else None for c in counts]
            rows.append({"id": p.id, "prompt": p.prompt, "answer": p.answer, "counts": cells})
        return {"steps": self.steps, "rows": rows}


def problems(run: RunRecord) -> Problems:
    """Collect the lines of eval.jsonl; of a step evaluated twice the last line of a problem counts."""
    found: dict[str, Problem] = {}
    for row in run.evaluations:
        step, n, correct = (number(row, key) for key in ("step", "n", "correct"))
        if step is None or n is None or correct is None or not 0 <= correct <= n < 1e9:
            run.unreadable["eval.jsonl"] = run.unreadable.get("eval.jsonl", 0) + 1
            continue
        id, answer, greedy = str(row.get("id")), row.get("answer"), row.get("greedy")
        problem = Problem(id, str(row.get("prompt", "")), None if answer is None else str(answer), {})
        count = Count(int(n), int(correct), greedy if isinstance(greedy, bool) else None)
        found.setdefault(id, problem).counts[int(step)] = count
    return Problems(sorted({step for p in found.values() for step in p.counts}), list(found.values()))
