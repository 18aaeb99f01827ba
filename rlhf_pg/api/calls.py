"""The commands as functions: `pg.train(...)`, `pg.sft(...)`, `pg.evaluate(...)`, with a recipe's keys as arguments."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rlhf_pg import config
from rlhf_pg.api.arguments import Data, Reward, Written, plain, reward_sections, sections_of
from rlhf_pg.api.runs import Run
from rlhf_pg.config import SftRecipe
from rlhf_pg.display import quiet


class Recipe(config.Recipe):
    """A recipe: its sections as attributes, `recipe.optimizer.lr`; `train(recipe)` runs it."""

    @classmethod
    def load(cls, recipe: str | Path, *overrides: str) -> Recipe:
        """Read a recipe by shipped name or file, with overrides ("optimizer.lr=1e-5"). Raises RecipeError."""
        written = config.load(recipe, overrides, makes_model=True).written
        return cls.model_validate(written.model_dump(exclude_unset=True))


def train(
    recipe: str | Path | Mapping[str, Any] | config.Recipe | None = None,
    *,
    model: str | Path | Mapping[str, Any] | None = None,
    data: Data | None = None,
    eval_data: Data | None = None,
    reward: Reward | Sequence[Reward] | None = None,
    steps: int | None = None,
    dir: str | Path | None = None,
    **keys: Any,
) -> Run:
    """Train by reinforcement learning and return the run; `rlhf-pg train` as a function.

    recipe: what the other arguments are laid over: a shipped name, a file, a mapping or a `Recipe`; default: nothing.
    model: `model.path`, or the section.
    data, eval_data: rows (dicts, a data set, a data frame), a file, a task's name, a hub data set, or the section.
    reward: a function, a name as in a recipe, a section of `rewards`, or a list of those. Functions run in processes of
    their own, with time and memory limits; those of a script or notebook travel as source.
    steps: `run.steps`. dir: `run.dir`; default: the first free of runs/run-1, runs/run-2, ...
    keys: any other section or dotted key of a recipe: rollout={"prompts_per_step": 8}, algorithm="ppo",
    **{"optimizer.lr": 1e-5}.

    Raises RecipeError for a wrong key or value, RunError for a run that fails. On Ctrl-C and SIGTERM the run is saved
    and KeyboardInterrupt raised; the same call with run={"resume": "auto"} and its `dir` goes on.
    """
    mapping, source = plain(recipe)
    sections = sections_of(model, data, eval_data, steps, dir, keys)
    if reward is not None:
        sections["rewards"] = reward_sections(reward)
    with Written(mapping, sections) as written:
        resolved = config.parse(written.mapping, config.Recipe, "pg.train", makes_model=True)
        with quiet.libraries(shown=False):
            from rlhf_pg.commands.run_training import train as run_training

            if run_training(resolved, source or _script()):
                raise KeyboardInterrupt("the run was stopped and saved")
    return Run(resolved.run.dir)


def sft(
    recipe: str | Path | Mapping[str, Any] | SftRecipe | None = None,
    *,
    model: str | Path | Mapping[str, Any] | None = None,
    data: Data | None = None,
    dir: str | Path | None = None,
    **keys: Any,
) -> Run:
    """Fine-tune on worked solutions and return the run; `rlhf-pg sft` as a function. Arguments as those of `train`."""
    mapping, source = plain(recipe)
    with Written(mapping, sections_of(model, data, None, None, dir, keys)) as written:
        resolved = config.parse(written.mapping, SftRecipe, "pg.sft")
        with quiet.libraries(shown=False):
            from rlhf_pg.commands.run_sft import sft as run_sft
            from rlhf_pg.training import hub

            hub.require(resolved, "pg.sft")
            run_sft(resolved, source or _script())
    return Run(resolved.run.dir)


def evaluate(
    recipe: str | Path | Mapping[str, Any] | config.Recipe | None = None, **arguments: Any
) -> dict[str, float]:
    """Measure greedy and pass@k of a model on held-out problems, `data.eval`; nothing is kept. Arguments as of `train`.

    Returns {"pass@1": 0.4, "pass@1_low": 0.3, "pass@1_high": 0.5, "greedy": ...}.
    """
    mapping, _ = plain(recipe)
    model, data, eval_data, reward = (arguments.pop(name, None) for name in ("model", "data", "eval_data", "reward"))
    if data is None and "train" not in mapping.get("data", {}):
        data = eval_data  # a recipe has data.train; nothing is read from it here but how rows are read
    with TemporaryDirectory() as folder:
        sections = sections_of(model, data, eval_data, None, folder, arguments)
        if reward is not None:
            sections["rewards"] = reward_sections(reward)
        with Written(mapping, sections) as written:
            resolved = config.parse(written.mapping, config.Recipe, "pg.evaluate")
            if resolved.data.eval is None:
                raise config.RecipeError("pg.evaluate", ["eval_data: needed, or data.eval of a recipe"])
            with quiet.libraries(shown=False):
                from rlhf_pg.commands.eval import measure

                return measure(resolved)[0]


def _script() -> Path | None:
    """Return the script that runs, whose commit is recorded."""
    script = Path(sys.argv[0]) if sys.argv and sys.argv[0] else None
    return script if script and script.is_file() and "ipykernel" not in script.name else None
