"""`rlhf-pg variance RECIPE`: measure the noise of each gradient estimator on one set of rollouts."""

from __future__ import annotations

import argparse
from pathlib import Path

from rlhf_pg.commands.parsing import add_option, add_recipe_command, options


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
    from rlhf_pg import config

    recipe = config.load(arguments.recipe, arguments.overrides)
    from rlhf_pg.train.variance_arguments import checked

    settings = checked(recipe, **options(arguments, "after", "groups", "out"))
    from rlhf_pg.train import variance

    return variance.run(recipe, *settings)
