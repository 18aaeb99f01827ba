"""Learning up to a goal: samples and seconds from the first step until held-out problems are solved greedily.

Everyone starts from the same weights and has the same prompts, reward function, group size, learning rate and loss.
Held-out accuracy is measured by the same engine for all, outside the clock.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from benchmarks.call import Call
from benchmarks.race import Contender, ContenderFailed
from benchmarks.summary import OURS

GOAL = 0.5  # held-out greedy accuracy
EVERY = 3  # steps between evaluations
LIMIT = 60  # steps
SEEDS = (101, 102, 103)  # none of them used in choosing the settings
TRL = "TRL"
RECIPE: dict[str, Any] = {
    "model": {"path": "smollm2"},
    "data": {
        "train": {
            "task": "arithmetic",
            "template": "chat",
            "instruction": "Write the sum in one line.",
            "options": {"operations": "+", "low": 10, "high": 99, "words": True, "count": 4000},
        },
        "eval": {"options": {"count": 100}},
    },
    "rollout": {"prompts_per_step": 16, "samples_per_prompt": 8, "max_new_tokens": 16},
    "rewards": [{"fn": "gsm8k"}],
    "kl": {"coefficient": 0.0},
    "optimizer": {"lr": 2e-5},
    "log": {"live": "off"},
}
TINY: dict[str, Any] = {  # seconds: for the test of this file
    "model": {"path": "tiny"},
    "data": {"train": {"task": "arithmetic", "template": "plain"}, "eval": {"options": {"count": 8}}},
    "rollout": {"prompts_per_step": 2, "samples_per_prompt": 2, "max_new_tokens": 2},
}


class Course:
    """One contender's way to the goal: its clock, which evaluations do not run on, and what it reached when."""

    def __init__(self, goal: float, every: int, limit: int, greedy: Callable[[], float]) -> None:
        self.goal, self.every, self.limit, self.greedy = goal, every, limit, greedy
        self.seconds, self.samples, self.steps = 0.0, 0, 0
        self.curve: list[dict[str, float]] = []
        self._evaluate()
        self.started = time.perf_counter()

    def step_done(self, samples: int) -> bool:
        """Count a step that has just ended; return whether the goal is reached or the limit is."""
        self.seconds += time.perf_counter() - self.started
        self.samples, self.steps = self.samples + samples, self.steps + 1
        if self.steps % self.every == 0:
            self._evaluate()
        ends = self.curve[-1]["greedy"] >= self.goal or self.steps >= self.limit
        self.started = time.perf_counter()
        return ends

    def answer(self) -> dict[str, Any]:
        """Return the curve, and where it ended."""
        reached = self.curve[-1]["greedy"] >= self.goal
        return {"seconds": self.seconds, "samples": self.samples, "reached": reached, "curve": self.curve}

    def _evaluate(self) -> None:
        self.curve.append(
            {"step": self.steps, "samples": self.samples, "seconds": self.seconds, "greedy": self.greedy()}
        )


def learn(call: Call) -> dict[str, Any]:
    """Let every contender learn from each seed, in turn and one at a time, a process for each."""
    tiny = set(call.shapes) == {"tiny"}
    recipe, limit = (RECIPE | TINY, 2 * EVERY) if tiny else (RECIPE, LIMIT)
    seeds = SEEDS[: call.places.rounds]
    runs: dict[str, list[dict[str, Any]]] = {OURS: [], TRL: []}
    contenders = {OURS: "benchmarks.learn_ours:learn"} | (
        {TRL: "benchmarks.learn_trl:learn"} if call.has("trl") else {}
    )
    for seed in seeds:
        settings = {"recipe": recipe, "seed": seed, "goal": GOAL, "every": EVERY, "limit": limit}
        for name, function in contenders.items():
            title = f"learn, seed {seed}"
            with ExitStack() as stack:
                processes = call.places.start(stack, title, [Contender(name, function, settings)])
                try:
                    runs[name] += [process.ask({}) | {"seed": seed} for process in processes.values()]
                except ContenderFailed as error:
                    call.places.failed[f"{title}, {name}"] = str(error)
    return {
        "goal": GOAL,
        "recipe": recipe,
        "contenders": [{"name": name, "runs": each, **medians(each)} for name, each in runs.items() if each],
        "ratios": ratios(runs[OURS], runs[TRL]),
    }


def medians(runs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the medians over seeds of samples, seconds and peak memory."""
    return {key: statistics.median(run[key] for run in runs) for key in ("samples", "seconds", "peak_mb")}


def ratios(ours: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the other's medians, each divided by ours; nothing where one of the two did not run."""
    if not ours or not others:
        return {}
    return {key: value / medians(ours)[key] for key, value in medians(others).items()}
