"""`rlhf-pg report RUN_DIR [RUN_DIR ...]`: one run's page, or several side by side."""

from __future__ import annotations

import argparse
from pathlib import Path

from rlhf_pg.commands.parsing import add_command


def add_parser(subcommands) -> None:
    """Add the command to the parser."""
    help = "write report.html from run directories"
    parser = add_command(subcommands, "report", run, help, "runs/a runs/b --out both.html")
    parser.add_argument("run_dirs", metavar="RUN_DIR", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, help="file to write; default: report.html in the first run directory")


def run(arguments: argparse.Namespace) -> int:
    """Write the page and print its path. Returns the exit code."""
    from rlhf_pg.report import write_report

    print(write_report.write(arguments.run_dirs, arguments.out))
    return 0
