"""`rlhf-pg train RECIPE`: train by reinforcement learning."""

from __future__ import annotations

import argparse

from rlhf_pg.commands.parsing import add_recipe_command, load_recipe


def add_parser(subcommands) -> None:
    """Add the command to the parser."""
    add_recipe_command(
        subcommands, "train", run, "train by reinforcement learning", "recipes/quickstart.yaml run.seed=1"
    )


def run(arguments: argparse.Namespace) -> int:
    """Read the recipe, then train. Returns the exit code."""
    from rlhf_pg.trackers import installed

    recipe = load_recipe(arguments, makes_model=True)
    installed.require(recipe.log.trackers, str(arguments.recipe))
    from rlhf_pg.commands.run_training import train

    return train(recipe, arguments.recipe)
