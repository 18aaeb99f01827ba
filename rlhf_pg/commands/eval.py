"""`rlhf-pg eval RECIPE`: measure greedy accuracy and pass@k of `model.path` on held-out problems; write nothing."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING

from rlhf_pg.commands.parsing import add_recipe_command, load_recipe

if TYPE_CHECKING:
    from rlhf_pg.config import ResolvedRecipe
    from rlhf_pg.training.setup import Session


def add_parser(subcommands) -> None:
    """Add the command to the parser."""
    add_recipe_command(
        subcommands, "eval", run, "measure greedy and pass@k on held-out problems", "R.yaml model.path=runs/r/model"
    )


def run(arguments: argparse.Namespace) -> int:
    """Read the recipe, evaluate, print a table. Returns the exit code."""
    from rlhf_pg import config

    recipe = load_recipe(arguments)
    if recipe.data.eval is None:
        raise config.RecipeError(str(arguments.recipe), ["data.eval: required by `rlhf-pg eval`, but not given"])
    from rich.console import Console

    metrics, session = measure(recipe)
    if session.learner.backend.ranks.first:
        for note in session.notes:
            print(note)
        Console().print(_table(f"{recipe.model.path}: {len(session.eval_prompts)} problems", metrics))
    return 0


def measure(recipe: ResolvedRecipe) -> tuple[dict[str, float], Session]:
    """Evaluate the model of a recipe with `data.eval`. Returns the figures, and the session they are of, closed."""
    from rich.progress import Progress

    from rlhf_pg.training.evaluate import evaluate
    from rlhf_pg.training.setup import build

    session = build(recipe, learn=False)
    try:
        with Progress(disable=not session.learner.backend.ranks.first) as bar:
            task = bar.add_task("evaluating")
            evaluation = evaluate(session, lambda done, total, tokens: bar.update(task, completed=done, total=total))
    finally:
        session.close()
    return evaluation.metrics, session


def _table(title: str, metrics: Mapping[str, float]):
    """Return a row per measure, with its interval where it has one."""
    from rich.table import Table

    table = Table("measure", "value", "95 % interval", title=title)
    for name, value in metrics.items():
        if not name.endswith(("_low", "_high")):
            low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
            table.add_row(name, f"{value:.4g}", "" if low is None else f"{low:.3f} to {high:.3f}")
    return table
