"""Runs of one recipe that differ only in the seed stand together: one colour, one name, one mean."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rlhf_pg.display.text import visible
from rlhf_pg.report.run_data import Run, dig

COLORS = 8
SEED = re.compile(r"[-_. ]*((?<![a-zA-Z])(seed|s)[-_. ]*)?\d+$")  # at the end of a run's name
NOT_RECIPE = ("run.dir", "run.seed", "run.resume", "run.preflight", "log.", "checkpoint.")  # keys that teach nothing


@dataclass(frozen=True)
class Group:
    """A recipe and its runs, which have different seeds; most often a single one."""

    label: str
    color: int  # 1 to 8
    again: bool  # the colour is taken already: lines are broken
    runs: list[Run]

    def each(self, figure: Callable[[Run], float | None]) -> list[float]:
        """The figure of every run that has it."""
        return [value for run in self.runs if (value := figure(run)) is not None]


def groups(runs: list[Run]) -> list[Group]:
    """The runs by recipe, in the order of their first runs."""
    by_recipe: dict[str, list[Run]] = {}
    for run in runs:
        by_recipe.setdefault(_recipe(run), []).append(run)
    together: list[list[Run]] = []
    for found in by_recipe.values():
        seeds = {str(dig(run.config, "run.seed")) for run in found}
        together += [found] if len(seeds) == len(found) else [[run] for run in found]
    together.sort(key=lambda found: runs.index(found[0]))
    labels = _labels(together)
    return [
        Group(label, i % COLORS + 1, i // COLORS % 2 == 1, found)
        for i, (label, found) in enumerate(zip(labels, together, strict=True))
    ]


def names(together: list[Group], runs: list[Run]) -> str:
    """ "ppo, grpo_s1": some runs by name, a whole group of them by its label."""
    wanted = {run.name for run in runs}
    out: list[str] = []
    for group in together:
        here = [run for run in group.runs if run.name in wanted]
        out += [group.label] if len(here) == len(group.runs) else [_told_apart(run, group) for run in here]
    return ", ".join(out)


def _told_apart(run: Run, group: Group) -> str:
    name = visible(run.name)
    return f"{name} (seed {visible(str(dig(run.config, 'run.seed')))})" if name == group.label else name


def flat(mapping: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """[("algorithm.name", "grpo"), ...]"""
    out = []
    for key, value in mapping.items():
        if isinstance(value, dict) and value:
            out += flat(value, f"{prefix}{key}.")
        else:
            out.append((f"{prefix}{key}", value))
    return out


def _recipe(run: Run) -> str:
    return repr(sorted((key, repr(value)) for key, value in flat(run.config) if not key.startswith(NOT_RECIPE)))


def _labels(together: list[list[Run]]) -> list[str]:
    """A lone run's name; of several their name without the seed, unless that is not one name or taken."""
    names = [_common([run.name for run in found]) for found in together]
    alone = [len(found) == 1 for found in together]
    return [
        visible(name if lone or (name and names.count(name) == 1) else f"{found[0].name} …")
        for name, lone, found in zip(names, alone, together, strict=True)
    ]


def _common(names: list[str]) -> str:
    """["ppo_s0", "ppo_s1"] -> "ppo"; a lone name is itself; "" when they differ in more than a last number."""
    bare = {SEED.sub("", name) for name in names}
    return names[0] if len(names) == 1 else bare.pop() if len(bare) == 1 else ""
