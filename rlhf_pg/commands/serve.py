"""`rlhf-pg serve RECIPE`: a recipe's rollout engine in a process of its own, for a trainer that says where it is."""

from __future__ import annotations

import argparse

from rlhf_pg.commands.parsing import add_option, add_recipe_command, load_recipe, options


def add_parser(subcommands) -> None:
    """Add the command to the parser."""
    parser = add_recipe_command(
        subcommands, "serve", run, "run a recipe's rollout engine as a server", "R.yaml rollout.server=runs/serve.json"
    )
    add_option(parser, "--host", metavar="ADDRESS", help="to listen on; default: 127.0.0.1, this machine only")
    add_option(parser, "--port", type=int, metavar="N", help="to listen on; default: any free one")


def run(arguments: argparse.Namespace) -> int:
    """Read the recipe, then serve until interrupted. Returns the exit code."""
    recipe = load_recipe(arguments)
    from rlhf_pg.commands.run_serve import serve

    return serve(recipe, **options(arguments, "host", "port"))
