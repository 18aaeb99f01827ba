"""`rlhf-pg recipes [copy NAME [FILE]]`: list the recipes that come with the package, or put one here to edit."""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path

from rlhf_pg.commands.parsing import add_command

SECTIONS = {
    "rlhf-pg train NAME": lambda name: "/" not in name and not name.endswith("_sft"),
    "rlhf-pg sft NAME": lambda name: name.endswith("_sft"),
    "accelerate launch --config_file (copy it first)": lambda name: "/" in name,
}


def add_parser(subcommands) -> None:
    """Add the command and its subcommand to the parser."""
    parser = add_command(subcommands, "recipes", run_list, "list the shipped recipes", "copy toy_grpo my_grpo.yaml")
    group = parser.add_subparsers(metavar="COMMAND")
    help = "put a shipped recipe here, to edit"
    copy = add_command(group, "copy", run_copy, help, "toy_grpo my_grpo.yaml", group="recipes")
    copy.add_argument("name", metavar="NAME", help="of a shipped recipe")
    copy.add_argument("file", metavar="FILE", type=Path, nargs="?", help="default: NAME.yaml in the current folder")


def run_list(arguments: argparse.Namespace) -> int:
    """Print name and first sentence of every shipped recipe. Returns the exit code."""
    from rlhf_pg.config import places

    width = max(map(len, places.shipped()))
    lines = shutil.get_terminal_size((120, 24)).columns
    for title, belongs in SECTIONS.items():
        print(title)
        for name in filter(belongs, places.shipped()):
            line = f"  {name:{width}}  {first_sentence(places.find(name).read_text(encoding='utf-8'))}"
            print(line if len(line) <= lines else f"{line[: lines - 3]}...")
    return 0


def run_copy(arguments: argparse.Namespace) -> int:
    """Copy a shipped recipe. Raises ValueError for a name that is not shipped, FileExistsError where FILE is taken."""
    from rlhf_pg.config import places
    from rlhf_pg.names import nearest

    name, names = arguments.name.removesuffix(".yaml"), places.shipped()
    if name not in names:
        raise ValueError(f"no shipped recipe {arguments.name!r}{nearest(name, names)} (rlhf-pg recipes lists them)")
    target = arguments.file or Path(f"{Path(name).name}.yaml")
    if target.exists():
        raise FileExistsError(f"{target} is there already; give another name: rlhf-pg recipes copy {name} FILE")
    target.write_text(places.find(name).read_text(encoding="utf-8"), encoding="utf-8")
    print(f"wrote {target}")
    return 0


def first_sentence(recipe: str) -> str:
    """Return the first sentence of the comment that a recipe opens with."""
    comment = re.match(r"(#[^\n]*\n)*", recipe)
    text = " ".join(line.lstrip("# ") for line in comment[0].splitlines()) if comment else ""
    return re.split(r"(?<=\.)\s", text, maxsplit=1)[0]
