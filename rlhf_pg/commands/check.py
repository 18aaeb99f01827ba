"""`rlhf-pg check RECIPE`: is this run set up right?"""

from __future__ import annotations

import argparse

from rlhf_pg.commands.parsing import add_recipe_command, load_recipe


def add_parser(subcommands) -> None:
    """Add the command to the parser."""
    add_recipe_command(subcommands, "check", run, "preflight: is this run set up right?", "recipes/gsm8k_grpo.yaml")


def run(arguments: argparse.Namespace) -> int:
    """Read the recipe, build the parts of the run and check them. Returns the exit code."""
    from rlhf_pg.trackers import installed

    recipe = load_recipe(arguments)
    installed.require(recipe.log.trackers, str(arguments.recipe))
    from rlhf_pg.preflight import checks

    return checks.run(recipe)
