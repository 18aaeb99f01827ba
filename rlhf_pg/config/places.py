"""Where recipes and the files they name are: beside the recipe first, then in the current folder.

Shipped recipes are files of the package and go by name: "quickstart", "accelerate/cpu_ddp".
"""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_pg.errors import RecipeError
from rlhf_pg.names import nearest

SHIPPED = (Path(__file__).parents[1] / "recipes").resolve()
FILE_KEYS = (
    "path",
    "tokenizer",
    "backbone",
    "fn",
    "cold_start",
)  # wherever they are; "fn" may have ":function" behind the file
NOT_FILES = ("tiny", "smollm2", "policy")  # models that go by name, also where a folder is called so


def shipped() -> list[str]:
    """Return the names of the shipped recipes, those of accelerate's last; not the parts that others build on."""
    files = sorted([*SHIPPED.glob("*.yaml"), *SHIPPED.glob("accelerate/*.yaml")], key=lambda f: (len(f.parts), f))
    return [file.relative_to(SHIPPED).with_suffix("").as_posix() for file in files]


def find(recipe: str | Path) -> Path:
    """Return the file of a recipe: the path itself, or the shipped recipe of that name where there is no such file."""
    path = Path(recipe).expanduser()
    return SHIPPED / f"{recipe}.yaml" if not path.exists() and str(recipe) in shipped() else path


def missing(recipe: Path) -> RecipeError:
    """Return the error for a recipe that is nowhere, with the shipped one that may be meant."""
    stem = recipe.with_suffix("").name
    hint = f"; {stem!r}, without folder and ending, is shipped" if stem in shipped() else nearest(stem, shipped())
    return RecipeError(str(recipe), [f"no such recipe file{hint} (rlhf-pg recipes lists those that are shipped)"])


def is_missing_folder(path: str) -> bool:
    """Return whether a model path can only be a folder and is not there; a hub name is `name` or `owner/name`."""
    is_file = path.lower().endswith(".gguf")
    return not is_file and (path.startswith((".", "/", "runs/")) or path.count("/") > 1) and not Path(path).is_dir()


def base_of(recipe: Path, base: str) -> Path:
    """Return the file that `base` in a recipe names. Raises RecipeError if there is none, beside it or shipped."""
    beside = recipe.parent / Path(base).expanduser()
    for path in (beside, SHIPPED / base):
        if path.is_file():
            return path
    raise RecipeError(str(recipe), [f"base: no file {beside}"])


def is_record(recipe: Path) -> bool:
    """Return whether a recipe is what a run wrote down: its paths are of the folder in which the run was started."""
    return recipe.name == "config.yaml" and (recipe.parent / "checkpoints").is_dir()


def anchored(value: Any, folder: Path, key: str = "") -> Any:
    """Return the values of a recipe in `folder`, its relative paths to files that are there made to hold everywhere;
    so are patterns (data/*.jsonl) that match something there.

    Other paths stay as they are written: they are of the current folder, or name something that is no file.
    """
    if isinstance(value, Mapping):
        return {name: anchored(inner, folder, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [anchored(inner, folder, key) for inner in value]
    if not isinstance(value, str) or key not in FILE_KEYS or not value or value in NOT_FILES:
        return value
    file, colon, rest = value.partition(":") if key == "fn" else (value, "", "")
    is_name = key == "fn" and not file.endswith(".py")
    if is_name or os.path.isabs(file):
        return value
    if os.path.exists(folder / file):
        return _shortest(folder / file) + colon + rest
    if key == "path" and glob.has_magic(file) and glob.glob(file, root_dir=folder, recursive=True):
        return os.path.normpath(os.path.join(glob.escape(_shortest(folder)), file))
    return value


def _shortest(path: Path) -> str:
    """Return a path relative to the current folder if it is in it, else an absolute one."""
    absolute = Path(os.path.normpath(path.absolute()))
    return str(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute)
