"""`rlhf-pg rewards list`: the reward functions that go by a name, their arguments and what they are for."""

from __future__ import annotations

import importlib
import inspect
import sys
import textwrap
from collections.abc import Callable
from importlib import metadata
from typing import Any

from rich.console import Console

from rlhf_pg.rewards import callables, plugin

OWN = "Your own: file.py:function or package.module:function. `rlhf-pg rewards check FN` says what a function asks for."


def show() -> int:
    """Print the shipped functions and those of installed packages. Returns the exit code."""
    width = Console().width if sys.stdout.isatty() else 100
    entries = sorted(metadata.entry_points(group=plugin.ENTRY_POINTS), key=lambda entry: entry.name)
    print("Shipped")
    for name in plugin.shipped():
        print(_entry(name, importlib.import_module(f"{plugin.SHIPPED}.{name}").__doc__, width))
    if entries:
        print(f"\nOf installed packages (entry points of {plugin.ENTRY_POINTS})")
    for entry in entries:
        print(_entry(entry.name, None, width))
    print("\n" + textwrap.fill(OWN, width))
    return 0


def _entry(name: str, about: str | None, width: int) -> str:
    """Return a function by its name with its arguments and, indented, the first paragraph of `about`, or else of its
    docstring; why, if it cannot be loaded."""
    try:
        module, function = plugin.locate(name)
        plugin.resolve(name)
        loaded = plugin.load(module, function)
        signature, about = _signature(loaded), about or inspect.getdoc(loaded) or ""
    except Exception as error:  # a plugin's import may raise anything
        signature, about = "", f"cannot be used: {error}"
    first = " ".join(about.strip().split("\n\n")[0].split())
    head = textwrap.wrap(f"{name}{signature}", width - 2, subsequent_indent="    ")
    return "\n".join(["", *(f"  {line}" for line in head), textwrap.indent(textwrap.fill(first, width - 6), "      ")])


def _signature(function: Callable[..., Any]) -> str:
    """Return the names and defaults of arguments, without their types: "(completion, level=1)"."""
    parameters = [p.replace(annotation=p.empty) for p in callables.parameters_of(function)]
    return str(inspect.Signature(parameters))
