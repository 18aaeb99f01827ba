"""`rlhf-pg completion SHELL`: completion of commands, recipes, keys, values and reward functions, by argcomplete."""

from __future__ import annotations

import argparse
from typing import Any

from rlhf_pg.commands.parsing import add_command

SHELLS = ("bash", "zsh", "fish", "tcsh", "powershell")
COMPLETE = {  # how a name on the command line is completed: dest -> completer(prefix, **)
    "recipe": lambda prefix, **_: recipes(prefix),
    "overrides": lambda prefix, parsed_args, **_: overrides(prefix, parsed_args.command),
    "fn": lambda prefix, **_: rewards(),
}


def add_parser(subcommands) -> None:
    """Add the command to the parser."""
    help = "print what makes a shell complete this command"
    parser = add_command(
        subcommands, "completion", run, help, 'bash   # in ~/.bashrc: eval "$(rlhf-pg completion bash)"'
    )
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help=", ".join(SHELLS))


def run(arguments: argparse.Namespace) -> int:
    """Print shell code to evaluate. Returns the exit code."""
    from argcomplete.shell_integration import shellcode

    print(shellcode(["rlhf-pg"], shell=arguments.shell))
    return 0


def answer(parser: argparse.ArgumentParser) -> None:
    """Answer the shell that asks for completions, and end the process."""
    import argcomplete

    _add_completers(parser)
    argcomplete.autocomplete(parser)


def recipes(prefix: str) -> list[str]:
    """Return the shipped recipes, and the folders and YAML files that begin so."""
    from argcomplete.completers import FilesCompleter

    from rlhf_pg.config import places

    return [*places.shipped(), *FilesCompleter(["yaml"])(prefix)]


def overrides(prefix: str, command: str = "train") -> list[str]:
    """Return `key=` for every key of the command's recipe, or `key=value` where a key has few values."""
    from typing import Literal, get_args, get_origin

    from rlhf_pg.config import Recipe, SftRecipe, messages

    keys = {key.name: key.field.annotation for key in messages.keys(SftRecipe if command == "sft" else Recipe)}
    name, equals, _ = prefix.partition("=")
    if not equals:
        return [f"{key.replace('.N.', '.0.')}=" for key in keys]
    annotation: Any = keys.get(name)
    literal = next((a for a in (annotation, *get_args(annotation)) if get_origin(a) is Literal), None)
    values = [str(value) for value in get_args(literal)] if literal else []
    return [f"{name}={value}" for value in (["true", "false"] if annotation is bool else values)]


def rewards() -> list[str]:
    """Return the shipped reward functions."""
    from rlhf_pg.rewards import plugin

    return plugin.shipped()


def _add_completers(parser: argparse.ArgumentParser) -> None:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                _add_completers(inner)
        elif action.dest in COMPLETE:
            action.completer = COMPLETE[action.dest]  # pyright: ignore[reportAttributeAccessIssue]
