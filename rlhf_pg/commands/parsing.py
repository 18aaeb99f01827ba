"""What the parsers of all subcommands have in common."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlhf_pg.names import nearest

Run = Callable[[argparse.Namespace], int]  # returns the exit code
OVERRIDE = re.compile(r"[A-Za-z_][\w.-]*=")


class Parser(argparse.ArgumentParser):
    """A parser of a command; with `overrides`, those and options come in any order, also as --key=value."""

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None):  # pyright: ignore
        """Parse, options last: argparse itself takes only those overrides that stand together."""
        words = list(sys.argv[1:] if args is None else args)
        if any(action.dest == "overrides" for action in self._actions):
            words = self._options_last(words)
        namespace, extras = super().parse_known_args(words, namespace)
        if extras:
            options = [option for option in self._option_string_actions if option.startswith("--")]
            self.error(f"unrecognized arguments: {' '.join(extras)}{nearest(extras[0].partition('=')[0], options)}")
        return namespace, extras

    def _options_last(self, words: Sequence[str]) -> list[str]:
        positionals, overrides, options, remaining = [], [], [], iter(words)
        for word in remaining:
            option = self._option_string_actions.get(word.partition("=")[0])
            key = _foreign_option(word)
            if option is not None:
                options.append(word)
                if option.nargs is None and "=" not in word:
                    options += [value for value in [next(remaining, None)] if value is not None]
            elif key:
                value = None if "=" in word else next(remaining, None)
                overrides.append(key if value is None else f"{key}={value}")
            elif word.startswith("--"):
                options.append(word)
            else:
                (overrides if OVERRIDE.match(word) else positionals).append(word)
        return [*positionals, *overrides, *options]


def _foreign_option(word: str) -> str:
    """Return what stands behind the dashes if that is a key of a recipe, here or elsewhere, else ""."""
    from rlhf_pg.config import foreign  # here: --help needs no recipe

    text = word[2:] if word.startswith("--") else ""
    name = text.partition("=")[0]
    return text if "." in name or name in ("rewards", "base") or foreign.key_for(name) else ""


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
    parser.add_argument(
        "overrides", metavar="key=value", nargs="*", default=[], help="overrides, as in optimizer.lr=1e-5"
    )
    return parser


def _recipe_file(text: str) -> Path:
    from rlhf_pg.config import places  # here: --help needs no recipe

    return places.find(text)


def load_recipe(
    arguments: argparse.Namespace, schema: Any = None, *, data: bool = True, makes_model: bool = False
) -> Any:
    """Read the recipe of a command line, and ask whether what it names on the hub is there: ResolvedRecipe, or
    `schema`. `data` False: its data sets are not needed. `makes_model`: as of `config.load`."""
    from rlhf_pg import config
    from rlhf_pg.training import hub

    recipe = config.load(arguments.recipe, arguments.overrides, schema or config.Recipe, makes_model=makes_model)
    hub.require(recipe, str(arguments.recipe), data=data)
    return recipe


def add_option(parser: argparse.ArgumentParser, name: str, **settings: Any) -> None:
    """Add an option that is passed on only when it is on the command line: its default is the called function's."""
    parser.add_argument(name, default=argparse.SUPPRESS, **settings)


def options(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Return what is on the command line by name: all of it, or only `names`."""
    values = {name: value for name, value in vars(arguments).items() if name not in ("command", "run", "debug")}
    return {name: values[name] for name in names if name in values} if names else values
