"""Runs of one recipe that differ only in the seed stand together: one colour, one name, one mean."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rlhf_pg.display.text import visible
from rlhf_pg.report.run_record import RunRecord

COLORS = 8
SEED = re.compile(r"[-_. ]*((?<![a-zA-Z])(seed|s)[-_. ]*)?\d+$")  # at the end of a run's name
NOT_RECIPE = ("run.dir", "run.seed", "run.resume", "run.preflight", "log.", "checkpoint.")  # keys that teach nothing


@dataclass(frozen=True)
class SeedGroup:
    """A recipe and its runs, which have different seeds; most often a single one."""

    label: str
    color: int  # 1 to 8
    again: bool  # an earlier group has the colour already: lines are broken
    runs: list[RunRecord]

    def each(self, measure: Callable[[RunRecord], float | None]) -> list[float]:
        """Return the measure of every run that has it."""
        return [value for run in self.runs if (value := measure(run)) is not None]


def seed_groups(runs: list[RunRecord]) -> list[SeedGroup]:
    """Return the runs by recipe, in the order of their first runs."""
    by_recipe: dict[str, list[RunRecord]] = {}
    for run in runs:
        by_recipe.setdefault(_recipe(run), []).append(run)
    members: list[list[RunRecord]] = []
    for same in by_recipe.values():
        seeds = {str(run.setting("run.seed")) for run in same}
        members += [same] if len(seeds) == len(same) else [[run] for run in same]
    members.sort(key=lambda group: runs.index(group[0]))
    return [
        SeedGroup(label, i % COLORS + 1, i // COLORS % 2 == 1, group)
        for i, (label, group) in enumerate(zip(_labels(members), members, strict=True))
    ]


def names(groups: list[SeedGroup], runs: list[RunRecord]) -> str:
    """Return "ppo, grpo_s1": some runs by name, a complete group of them by its label."""
    selected = {run.name for run in runs}
    texts: list[str] = []
    for group in groups:
        members = [run for run in group.runs if run.name in selected]
        texts += [group.label] if len(members) == len(group.runs) else [_told_apart(run, group) for run in members]
    return ", ".join(texts)


def flat(mapping: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return [("algorithm.name", "grpo"), ...] of nested mappings."""
    items = []
    for key, value in mapping.items():
        if isinstance(value, dict) and value:
            items += flat(value, f"{prefix}{key}.")
        else:
            items.append((f"{prefix}{key}", value))
    return items


def _told_apart(run: RunRecord, group: SeedGroup) -> str:
    name = visible(run.name)
    return f"{name} (seed {visible(str(run.setting('run.seed')))})" if name == group.label else name


def _recipe(run: RunRecord) -> str:
    return repr(sorted((key, repr(value)) for key, value in flat(run.config) if not key.startswith(NOT_RECIPE)))


def _labels(members: list[list[RunRecord]]) -> list[str]:
    """Return a single run's name; of several their name without the seed, unless that is not one name or not unique."""
    stems = [_stem([run.name for run in group]) for group in members]
    return [
        visible(stem if len(group) == 1 or (stem and stems.count(stem) == 1) else f"{group[0].name} …")
        for stem, group in zip(stems, members, strict=True)
    ]


def _stem(run_names: list[str]) -> str:
    """Return "ppo" of ["ppo_s0", "ppo_s1"], a single name as it is, "" when names differ in more than a last number."""
    stems = {SEED.sub("", name) for name in run_names}
    return run_names[0] if len(run_names) == 1 else stems.pop() if len(stems) == 1 else ""
