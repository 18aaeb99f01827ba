"""`rlhf-pg push RUN_DIR_OR_MODEL REPO`: put a run's model on the Hugging Face Hub."""

from __future__ import annotations

import argparse
from pathlib import Path

from rlhf_pg.commands.parsing import add_command, options


def add_parser(subcommands) -> None:
    """Add the command to the parser."""
    parser = add_command(subcommands, "push", run, "put a model on the Hugging Face Hub", "runs/quickstart me/my-model")
    help = "a run's folder, whose model/ is meant, or a model's or adapter's own"
    parser.add_argument("folder", metavar="RUN_DIR_OR_MODEL", type=Path, help=help)
    parser.add_argument("repo", metavar="REPO", help="owner/name on the hub; made if it is not there")
    parser.add_argument("--private", action="store_true", help="only you and your organisation may see it")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be sent; no network is used")


def run(arguments: argparse.Namespace) -> int:
    """Send the folder. Returns the exit code."""
    from rlhf_pg.commands import run_push

    return run_push.push(**options(arguments))
