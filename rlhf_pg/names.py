"""Names in a recipe: the closest one that exists, and the object that a dotted path stands for. Imports no torch."""

from __future__ import annotations

import difflib
import importlib
import os
import pkgutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

R = TypeVar("R")
STATISTICS = {"mean", "std", "min", "max", "zero_std_groups"}  # of reward/* in the metrics: all else are functions
SHIPPED_MODELS = ("tiny", "smollm2")  # values of model.path
CLOSE = 0.75  # likeness of a model's name: hub names are often a little like others


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the choice closest to `word`, or "" when none is close."""
    closest = difflib.get_close_matches(str(word), list(choices), n=1)
    return f"; did you mean {closest[0]!r}?" if closest else ""


def nearest_folder(path: Path) -> str:
    """Return "; did you mean 'runs/r/model'?" for the path with the first part that does not exist spelled as one that
    does, or "" when none is close."""
    missing = path
    while missing != missing.parent and not os.path.isdir(missing.parent):
        missing = missing.parent
    try:
        folders = [entry.name for entry in os.scandir(missing.parent) if entry.is_dir()]
    except OSError:
        return ""
    closest = difflib.get_close_matches(missing.name, folders, n=1)
    return f"; did you mean {str(missing.with_name(closest[0]) / path.relative_to(missing))!r}?" if closest else ""


def nearest_file(path: Path) -> str:
    """Return "; did you mean 'data/rows.jsonl'?" for the file of the same folder that is spelled nearly so, or what
    `nearest_folder` says where there is no such folder."""
    if not path.parent.is_dir():
        return nearest_folder(path)
    try:
        files = [entry.name for entry in os.scandir(path.parent) if entry.is_file()]
    except OSError:
        return ""
    closest = difflib.get_close_matches(path.name, files, n=1)
    return f"; did you mean {str(path.with_name(closest[0]))!r}?" if closest else ""


def nearest_model(path: str) -> str:
    """Return "; did you mean 'runs/r/model'?" for what is no model folder: the model in that folder, one of runs/ of
    about that name, a shipped one, or a folder spelled nearly so; "" when none is close."""
    if os.path.isfile(os.path.join(path, "model", "config.json")):
        return f"; did you mean {os.path.join(path, 'model')!r}?"
    choices = {name: name for name in SHIPPED_MODELS}
    for config in sorted(Path("runs").glob("*/model/config.json")):
        run, model = config.parents[1], str(config.parent)
        choices |= {model: model, str(run): model, run.name: model, f"{run.name}/model": model}
    closest = difflib.get_close_matches(path.lower().rstrip("/"), choices, n=1, cutoff=CLOSE)
    return f"; did you mean {choices[closest[0]]!r}?" if closest else nearest_folder(Path(path))


def load_attribute(name: str, default_attribute: str | None, what: str, shipped: Sequence[str] = ()) -> Any:
    """Import the object behind "module:attribute", or behind "package.module" if there is a `default_attribute`.

    `what` says in messages what the name is of ("algorithm"); `shipped` are the names that need no path. Raises
    ValueError for a name without a path, with the closest shipped one, and for a path that cannot be imported.
    """
    module, _, attribute = name.partition(":")
    if not attribute and (default_attribute is None or "." not in module):
        listed = f"shipped are {', '.join(shipped)}{nearest(name, shipped)}, or " if shipped else ""
        raise ValueError(f"no {what} {name!r}: {listed}give module:attribute")
    try:
        return getattr(importlib.import_module(module), attribute or default_attribute or "")
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{what} {name!r} cannot be loaded: {error}") from error


def shipped(folder: str) -> list[str]:
    """Return the names of the records that a package ships: its files, but for base.py."""
    package = importlib.import_module(folder)
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__) if module.name != "base")


def load_record(name: str, folder: str, kind: type[R]) -> R:
    """Import a record of class `kind` by shipped name (a file of `folder`) or dotted path ("my_file:attribute").

    In a file it goes by the class's name in lower case. Raises ValueError naming the closest shipped name, or what the
    dotted path lacks.
    """
    what = kind.__name__.lower()
    if name in shipped(folder):
        return getattr(importlib.import_module(f"{folder}.{name}"), what)
    record = load_attribute(name, what, what, shipped(folder))
    if not isinstance(record, kind):
        raise ValueError(f"{what} {name!r} is a {type(record).__name__}, not an rlhf_pg {kind.__name__} record")
    return record
