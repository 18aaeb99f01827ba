"""What the parsers of all subcommands have in common."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = Callable[[argparse.Namespace], int]  # returns the exit code


def add_command(subcommands, name: str, run: Run, help: str, example: str, group: str = "") -> argparse.ArgumentParser:
    """Add a subcommand and return its parser. `group`: of `rlhf-pg GROUP NAME`; `example`: what follows the name."""
    path = f"{group} {name}".strip()
    parser = subcommands.add_parser(
        name,
        help=help,
        description=help,
        epilog=f"example:\n  rlhf-pg {path} {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--debug", action="store_true", help="show the traceback of an error, and all that libraries log"
    )
    parser.set_defaults(run=run, command=path)
    return parser


def add_recipe_command(subcommands, name: str, run: Run, help: str, example: str) -> argparse.ArgumentParser:
    """Add a subcommand that reads a recipe and overrides."""
    parser = add_command(subcommands, name, run, help, example)
    help = "YAML file, or the name of a shipped recipe (rlhf-pg recipes); docs/recipes.md lists its keys"
    parser.add_argument("recipe", metavar="RECIPE", type=_recipe_file, help=help)
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="overrides, as in optimizer.lr=1e-5")
    return parser


def _recipe_file(text: str) -> Path:
    from rlhf_pg.config import places  # here: --help needs no recipe

    return places.find(text)


def load_recipe(arguments: argparse.Namespace, schema: Any = None, *, data: bool = True) -> Any:
    """Read the recipe of a command line, and ask whether what it names on the hub is there: ResolvedRecipe, or
    `schema`. `data` False: its data sets are not needed."""
    from rlhf_pg import config
    from rlhf_pg.training import hub

    recipe = config.load(arguments.recipe, arguments.overrides, schema or config.Recipe)
    hub.require(recipe, str(arguments.recipe), data=data)
    return recipe


def add_option(parser: argparse.ArgumentParser, name: str, **settings: Any) -> None:
    """Add an option that is passed on only when it is on the command line: its default is the called function's."""
    parser.add_argument(name, default=argparse.SUPPRESS, **settings)


def options(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Return what is on the command line by name: all of it, or only `names`."""
    values = {name: value for name, value in vars(arguments).items() if name not in ("command", "run", "debug")}
    return {name: values[name] for name in names if name in values} if names else values
