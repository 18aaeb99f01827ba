"""The `rlhf-pg` command: parse, run one subcommand, and turn its errors into exit codes.

Exit codes: 0 done, 1 the run failed, 2 wrong command line, recipe or input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Sequence

from rlhf_pg import __version__
from rlhf_pg.commands import (
    check,
    completion,
    env,
    eval,
    parsing,
    plan,
    push,
    recipes,
    report,
    rewards,
    serve,
    sft,
    train,
    variance,
    watch,
)
from rlhf_pg.display import quiet

COMMANDS = (train, sft, eval, check, serve, plan, variance, report, watch, push, rewards, recipes, env, completion)
FAILED, USAGE, INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. `argv` without the program name; default: the process's."""
    if "_ARGCOMPLETE" in os.environ:
        completion.answer(parser())
    arguments = parser().parse_args(argv)
    if arguments.command is None:
        parser().print_help()
        return USAGE
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # plugins of the current directory, as under `python -m`
    try:
        with quiet.libraries(shown=arguments.debug):
            return arguments.run(arguments) or 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        code = _exit_code(error)
        if code is None or arguments.debug:
            raise
        _complain(error)
        return code


def parser() -> argparse.ArgumentParser:
    """Make the parser of all commands."""
    top = parsing.Parser(
        prog="rlhf-pg",
        description="Policy-gradient training of small language models on math.",
        epilog="example: rlhf-pg train recipes/quickstart.yaml run.seed=1",
    )
    top.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    top.set_defaults(command=None)
    subcommands = top.add_subparsers(metavar="COMMAND", parser_class=parsing.Parser)
    for command in COMMANDS:
        command.add_parser(subcommands)
    return top


def _exit_code(error: Exception) -> int | None:
    """Return the exit code of an error a person can act on; None for one that is a bug of this package."""
    from rlhf_pg.errors import RunError

    if isinstance(error, RunError | FloatingPointError) or _is_out_of_memory(error):
        return FAILED
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError | FileExistsError | ValueError):
        return USAGE
    return FAILED if isinstance(error, OSError) else None


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # torch's, without importing it


def _complain(error: Exception) -> None:
    """Print one paragraph on stderr. Under a launcher a recipe's error is every process's: only the first prints it."""
    from rlhf_pg.errors import RecipeError

    rank = os.environ.get("RANK", "0")
    if isinstance(error, RecipeError):
        if rank == "0":
            print(error, file=sys.stderr)
        return
    who = "rlhf-pg" if os.environ.get("WORLD_SIZE", "1") == "1" else f"rlhf-pg (rank {rank})"
    hint = " Lower update.tokens_per_microbatch or rollout.slots." if _is_out_of_memory(error) else ""
    text = f"{who}: {str(error) or type(error).__name__}{hint} (--debug shows the traceback)"
    print(textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False), file=sys.stderr)
