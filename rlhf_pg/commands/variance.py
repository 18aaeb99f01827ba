"""`rlhf-pg variance RECIPE`: measure the noise of each gradient estimator on one set of rollouts."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_pg.commands.parsing import add_option, add_recipe_command, load_recipe, options

if TYPE_CHECKING:
    from rlhf_pg.config import ResolvedRecipe

RUN_FILES = ("metrics.jsonl", "config.yaml", "checkpoints", "model", ".lock")


def add_parser(subcommands) -> None:
    """Add the command to the parser."""
    help = "measure the noise of each gradient estimator"
    parser = add_recipe_command(subcommands, "variance", run, help, "recipes/toy_ppo.yaml --after 5")
    add_option(parser, "--after", type=int, metavar="N", help="train so many steps first, in memory; default: 10")
    add_option(parser, "--groups", type=int, metavar="N", help="groups of samples to measure on; default: 256")
    add_option(
        parser, "--out", type=Path, metavar="FOLDER", help="for json and png; default: variance_<run> beside run.dir"
    )


def run(arguments: argparse.Namespace) -> int:
    """Read the recipe, check the options, measure. Returns the exit code."""
    recipe = load_recipe(arguments)
    return measure(recipe, *checked(recipe, **options(arguments, "after", "groups", "out")))


def checked(
    recipe: ResolvedRecipe, *, after: int = 10, groups: int = 256, out: Path | None = None
) -> tuple[int, int, Path]:
    """Return steps to train first, groups to measure on, and the folder to write to, which is created.

    Raises ValueError for a number out of range, a folder that holds a run, or one that cannot be created.
    """
    if groups < 2:
        raise ValueError(f"--groups {groups}: a variance needs at least 2 groups")
    if not 0 <= after <= recipe.run.steps:
        raise ValueError(f"--after {after}: the recipe's run has steps 0 to {recipe.run.steps} (run.steps)")
    folder = out or recipe.run.dir.with_name(f"variance_{recipe.run.dir.name}")
    files = [name for name in RUN_FILES if (folder / name).exists()]
    if files:
        raise ValueError(f"--out {folder} holds a run ({', '.join(files)}): choose another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {folder} cannot be made: {error.strerror}; choose another folder") from error
    return after, groups, folder


def measure(recipe: ResolvedRecipe, after: int, groups: int, folder: Path) -> int:
    """Train, measure, print a table, write variance.json and variance.png to `folder`. Returns the exit code."""
    from rlhf_pg.report import variance as picture
    from rlhf_pg.training import variance
    from rlhf_pg.training.setup import build, join

    sections = {
        "rollout": recipe.rollout.model_copy(update={"overlap": False}),  # the estimators are compared on-policy
    }
    backend = join(recipe).require_one_process("rlhf-pg variance")
    session = build(recipe.changed(**sections), backend=backend)
    try:
        result = variance.measure(session, after, groups)
    finally:
        session.close()
    picture.write(result, folder)
    return 0
