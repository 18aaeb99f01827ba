"""Which files `data.*.path` names: a file, a folder that `datasets` saved, a glob pattern, or a list of these."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Sequence
from pathlib import Path

from rlhf_pg.names import nearest

Paths = str | Path | Sequence[str | Path]
SPLITS = "dataset_dict.json"  # in a folder of `DatasetDict.save_to_disk`; each split is a folder below it
SAVED = "dataset_info.json"  # in a folder of `Dataset.save_to_disk`
SHOWN = 8  # names of a folder that an error lists


def files_of(paths: Paths) -> list[Path]:
    """Return the files and saved data sets of one path or a list: in the order given, those of a pattern sorted.

    A name that exists is no pattern. Raises ValueError for what matches nothing, a folder of another kind, and a file
    named twice.
    """
    names = [paths] if isinstance(paths, str | Path) else list(paths)
    if not names:
        raise ValueError("an empty list; name at least one file")
    files = [file for name in names for file in _matches(str(name))]
    places = [os.path.realpath(file) for file in files]
    twice = next((file for i, file in enumerate(files) if places[i] in places[:i]), None)
    if twice is not None:
        raise ValueError(f"{twice} is named twice: its rows would count twice")
    return files


def splits_of(folder: Path) -> list[str]:
    """Return the splits of a saved DatasetDict; [] for anything else."""
    try:
        splits = json.loads((folder / SPLITS).read_bytes())["splits"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [str(name) for name in splits]


def is_saved(folder: Path) -> bool:
    """Return whether `datasets.save_to_disk` wrote a folder."""
    return any((folder / name).is_file() for name in (SPLITS, SAVED))


def _matches(name: str) -> list[Path]:
    if os.path.exists(name):
        files = [Path(name)]
    elif glob.has_magic(name):
        files = [Path(match) for match in sorted(glob.glob(name, recursive=True))]
        if not files:
            raise ValueError(f"no file matches {name}; {_contents(_literal_folder(Path(name)))}")
    else:
        looked = "" if os.path.isabs(name) else f" in {Path.cwd()}"
        raise ValueError(f"no file {name}{looked}{_near(Path(name))}")
    for file in files:
        if file.is_dir() and not is_saved(file):
            raise ValueError(
                f"{file}: a folder, and not one that datasets' save_to_disk wrote; files in it are named by a pattern, "
                f"such as {file}/*.jsonl ({_contents(file)})"
            )
    return files


def _literal_folder(pattern: Path) -> Path:
    """Return the folder in which a pattern begins to be one."""
    while glob.has_magic(str(pattern)) and not pattern.is_dir():
        pattern = pattern.parent
    return pattern


def _contents(folder: Path) -> str:
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return f"there is no folder {folder}"
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"in {folder}: {', '.join(names[:SHOWN])}{more}" if names else f"{folder} is empty"


def _near(file: Path) -> str:
    try:
        return nearest(file.name, os.listdir(file.parent))
    except OSError:
        return f"; there is no folder {file.parent}"
