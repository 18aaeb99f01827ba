"""`rlhf-pg rewards list | check FN | score FN`: which reward functions there are, and one tried on data."""

from __future__ import annotations

import argparse
from pathlib import Path

from rlhf_pg.commands.parsing import add_command, add_option, options


def add_parser(subcommands) -> None:
    """Add the commands to the parser."""
    group = subcommands.add_parser("rewards", help="list reward functions, try one on data")
    group = group.add_subparsers(metavar="COMMAND", required=True)
    add_command(group, "list", run_list, "which reward functions go by a name", "", group="rewards")
    _add_check(group)
    _add_score(group)


def _add_check(group) -> None:
    help = "does a reward function run on this data?"
    parser = add_command(group, "check", run_check, help, "math_answer --data F.jsonl", group="rewards")
    _add_common(parser)
    add_option(
        parser,
        "--data",
        type=Path,
        help="rows: a file or a pattern in quotes, as data.*.path; without it, only say what the function asks for",
    )
    add_option(parser, "--answer", metavar="COLUMN", help="column with the gold answer; default: answer")
    add_option(parser, "--completion", metavar="COLUMN", help="column with the text to score; default: gold answers")
    add_option(parser, "--rows", type=int, metavar="N", help="use the first N rows; default: 8")


def _add_score(group) -> None:
    help = "score completions of a file, one line per row"
    example = "gsm8k --data F.jsonl --completion output --answer answer --out scored.jsonl"
    parser = add_command(group, "score", run_score, help, example, group="rewards")
    _add_common(parser)
    parser.add_argument("--data", type=Path, required=True, help="rows: a file or a pattern in quotes, as data.*.path")
    parser.add_argument("--completion", required=True, metavar="COLUMN", help="column with the text to score")
    parser.add_argument("--answer", required=True, metavar="COLUMN", help="column with the gold answer")
    parser.add_argument("--out", type=Path, required=True, help="a line per row: score, outcome")
    add_option(parser, "--workers", type=int, metavar="N", help="processes that score; default: 2")


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("fn", metavar="FN", help="shipped name, file.py:function or dotted.path:function")
    add_option(
        parser,
        "--args",
        metavar="NAME=VALUE",
        nargs="+",
        action="extend",
        help="arguments of the function, as scale=2 or '{scale: 2, words: [a, b]}'",
    )
    add_option(parser, "--prompt", metavar="COLUMN", help="column with the problem; default: prompt, if there is one")
    add_option(parser, "--timeout-s", type=float, metavar="S", help="seconds a sample may take; default: 10")
    add_option(parser, "--memory-mb", type=int, metavar="MB", help="memory a worker may take; default: 2048")


def run_list(arguments: argparse.Namespace) -> int:
    """Print the names, arguments and purposes of reward functions. Returns the exit code."""
    from rlhf_pg.commands import run_rewards_list

    return run_rewards_list.show()


def run_check(arguments: argparse.Namespace) -> int:
    """Show what the function asks for and score the first rows. Returns the exit code."""
    from rlhf_pg.commands import run_rewards

    return run_rewards.check(**options(arguments))


def run_score(arguments: argparse.Namespace) -> int:
    """Score every row into a file. Returns the exit code."""
    from rlhf_pg.commands import run_rewards

    return run_rewards.score(**options(arguments))
