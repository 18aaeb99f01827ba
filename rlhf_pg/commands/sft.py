"""`rlhf-pg sft RECIPE`: fine-tune on worked solutions."""

from __future__ import annotations

import argparse

from rlhf_pg.commands.parsing import add_recipe_command, load_recipe


def add_parser(subcommands) -> None:
    """Add the command to the parser."""
    add_recipe_command(
        subcommands, "sft", run, "fine-tune on worked solutions", "recipes/quickstart_sft.yaml sft.epochs=2"
    )


def run(arguments: argparse.Namespace) -> int:
    """Read the recipe, then fine-tune. Returns the exit code."""
    from rlhf_pg import config

    recipe = load_recipe(arguments, config.SftRecipe)
    from rlhf_pg.commands.run_sft import sft

    return sft(recipe, arguments.recipe)
