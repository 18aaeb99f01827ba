"""One run state = named groups of tensors + one JSON object, saved so that a kill at any moment loses nothing.

    checkpoints/step_00000010/model.safetensors       one file per group
                              random_rank1.safetensors  of several processes: what only this one has
                              state.json              the JSON object
                              manifest.json           format, step, size and sha256 of each file, tied tensors

A checkpoint is written into a temporary sibling, fsynced, and renamed; older ones go only after that. No pickle, ever.
One launch writes to a directory (`RunDir` holds the lock); `latest` and `load` only read and may run anywhere.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from rlhf_pg.distributed.ranks import Ranks
from rlhf_pg.errors import RunError
from rlhf_pg.storage.atomic_io import TEMPORARY, disk_error, fsync_directory, remove_leftovers, write_new
from rlhf_pg.storage.tensor_file import aliases_of, write_tensors

FORMAT = 1
REPLACED = ".replaced"  # suffix of a checkpoint while a new one of the same step takes its place
_NAME = re.compile(r"step_(\d{8,})")
_GROUP = re.compile(r"[a-z][a-z0-9_]*")
_RANKS = re.compile(r"(.+)_rank(\d+)")  # groups that one of several ranks wrote
OF_RANK = "of_rank"  # key of the state: the list of the ranks' own
log = logging.getLogger(__name__)


def save(
    directory: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    keep: int,
    own: tuple[Mapping[str, Mapping[str, Tensor]], Mapping[str, Any]] = ({}, {}),
    ranks: Ranks | None = None,
) -> Path:
    """Write `directory`/step_<step> and return it; then delete all but the newest `keep`.

    `directory` is the one that holds the step folders (`RunDir.checkpoints`). `tensors` maps group name -> tensor name
    -> tensor of any device; dtype, shape and bits are kept; tensors that are one and the same memory (tied weights)
    are stored once and tied again by `load`. `state` is plain JSON (tuples come back as lists, NaN and infinity as they
    are). Saving a step again replaces it. Checkpoints of later steps belong to a future this run has left: deleted.

    Of several `ranks`, which all call this, the first writes `tensors` and `state`, and each writes its `own`.

    Raises ValueError for what cannot be stored (naming it), OSError naming the path and the free bytes when the disk
    refuses; earlier checkpoints are then still valid. Raises RunError if that happened to another rank.
    """
    ranks = ranks or Ranks()
    if keep < 1 or step < 0:
        raise ValueError(f"checkpoint step {step} with keep {keep}: step must be at least 0 and keep at least 1")
    what = f"checkpoint {step}"
    own_tensors, own_state = own
    if ranks.size == 1:
        tensors, state = {**tensors, **own_tensors}, {**state, **own_state}
    else:
        own_tensors = {_of_rank(group, ranks.rank): named for group, named in own_tensors.items()}
        tensors = {**(tensors if ranks.first else {}), **own_tensors}
        state = {**state, OF_RANK: ranks.gather(own_state, what)}
    _check_json(state, "state")
    final = directory / f"step_{step:08d}"
    temporary = directory / f"{TEMPORARY}{final.name}"
    try:
        with ranks.apart(f"{what}: its folder"):
            if ranks.first:
                directory.mkdir(parents=True, exist_ok=True)
                clean(directory)
                temporary.mkdir()
        with ranks.apart(f"{what}: its files"):
            written = _write_groups(temporary, tensors)
        parts = ranks.gather(written, what)
        with ranks.apart(f"{what}: its name"):
            if ranks.first:
                _write_manifest(temporary, step, parts, state)
                _publish(temporary, final)
    except (OSError, RunError) as error:
        failure = disk_error(final, error) if isinstance(error, OSError) else error
        with suppress(OSError):  # after the free bytes at the failure were counted
            if ranks.first:
                clean(directory)
        raise failure from error
    with ranks.apart(f"{what}: older ones"):
        if ranks.first:
            _prune(directory, step, keep)
    return final


def latest(directory: Path) -> Path | None:
    """The checkpoint of the highest step whose every byte verifies, or None. A damaged one is skipped: logged."""
    for _, path in sorted(_found(directory), reverse=True):
        try:
            _verify(path)
        except ValueError as damage:
            log.warning("skipped: %s", damage)
        else:
            return path
    return None


def load(path: Path, rank: int = 0) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Read (tensors, state) as given to `save`, on the CPU, in memory of their own; of the ranks' own, those of `rank`
    (of rank 0 if it was saved by fewer).

    Verifies size and sha256 of every file it reads first. Raises ValueError naming the damaged or missing file.
    """
    manifest = _manifest(path)
    saved = {int(match[2]) for group in manifest["aliases"] if (match := _RANKS.fullmatch(group))}
    rank = rank if rank in saved else 0
    names = {group: group for group in manifest["aliases"] if not _RANKS.fullmatch(group)}
    names |= {group.removesuffix(_of_rank("", rank)): group for group in manifest["aliases"] if _is_of(group, rank)}
    _verify(path, [*(f"{group}.safetensors" for group in names.values()), "state.json"])
    tensors: dict[str, dict[str, Tensor]] = {}
    for name, group in names.items():
        with safe_open(path / f"{group}.safetensors", framework="pt") as file:
            # clone: the file may be pruned, or its disk vanish, while a mapped tensor still reads from it
            tensors[name] = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
        aliases = manifest["aliases"][group]
        tensors[name].update({alias: tensors[name][owner] for alias, owner in aliases.items()})
    state = json.loads((path / "state.json").read_bytes())
    parts = state.pop(OF_RANK, None)
    return tensors, {**state, **parts[rank]} if parts else state


def exists(directory: Path) -> bool:
    """Whether any checkpoint is there, damaged ones included."""
    return bool(_found(directory))


def clean(directory: Path) -> None:
    """Finish or undo what a killed `save` began. Only for the one process that may write here."""
    for old in directory.glob(f"step_*{REPLACED}"):
        final = old.with_name(old.name.removesuffix(REPLACED))
        if final.exists():
            _remove(old)
        else:
            os.rename(old, final)
    remove_leftovers(directory)


def _found(directory: Path) -> list[tuple[int, Path]]:
    """(step, path) of each checkpoint; one caught in the middle of being replaced counts where it stands."""
    found: dict[int, Path] = {}
    for path in sorted(directory.glob("step_*"), reverse=True):  # step_1.replaced before step_1, which overrides it
        if match := _NAME.fullmatch(path.name.removesuffix(REPLACED)):
            found[int(match[1])] = path
    return list(found.items())


def _of_rank(group: str, rank: int) -> str:
    return f"{group}_rank{rank}"


def _is_of(group: str, rank: int) -> bool:
    match = _RANKS.fullmatch(group)
    return bool(match) and int(match[2]) == rank


def _write_groups(folder: Path, tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Any]:
    """Write a file per group. -> size and sha256 of each file, tied tensors of each group"""
    files: dict[str, dict[str, Any]] = {}
    aliases: dict[str, dict[str, str]] = {}
    for group, named in tensors.items():
        if not _GROUP.fullmatch(group):
            raise ValueError(f"checkpoint group {group!r}: use lower-case letters, digits and _")
        aliases[group] = aliases_of(named)
        distinct = {name: tensor for name, tensor in named.items() if name not in aliases[group]}
        files[f"{group}.safetensors"] = write_tensors(folder / f"{group}.safetensors", distinct)
    return {"files": files, "aliases": aliases}


def _write_manifest(folder: Path, step: int, parts: list[dict[str, Any]], state: Mapping[str, Any]) -> None:
    """Write the state, and the list of all files that make the checkpoint."""
    text = json.dumps(state).encode()
    write_new(folder / "state.json", text)
    files = {name: facts for part in parts for name, facts in part["files"].items()}
    files["state.json"] = {"size": len(text), "sha256": hashlib.sha256(text).hexdigest()}
    aliases = {group: tied for part in parts for group, tied in part["aliases"].items()}
    manifest: dict[str, Any] = {"format": FORMAT, "step": step, "files": files, "aliases": aliases}
    manifest["sha256"] = _digest(manifest)
    write_new(folder / "manifest.json", json.dumps(manifest, indent=1).encode())
    fsync_directory(folder)


def _publish(temporary: Path, final: Path) -> None:
    """Move a complete checkpoint into its place. At every moment the new or the replaced one is there, whole."""
    replaced = final.with_name(final.name + REPLACED)
    if final.exists():
        os.rename(final, replaced)
    os.rename(temporary, final)
    fsync_directory(final.parent)
    if replaced.exists():
        _remove(replaced)


def _remove(path: Path) -> None:
    """Delete a checkpoint; its name goes first, so that a kill in the middle does not leave a damaged one."""
    removed = path.with_name(f"{TEMPORARY}removed-{path.name}")
    os.rename(path, removed)
    shutil.rmtree(removed)


def _prune(directory: Path, step: int, keep: int) -> None:
    """Delete checkpoints of later steps and all but the newest `keep`, counting only those with nothing missing."""
    found = sorted(_found(directory), reverse=True)
    later = [path for number, path in found if number > step]
    complete = [path for number, path in found if number <= step and not _missing(path)]
    for path in [*later, *complete[keep:]]:
        if path in later:
            log.warning("removed %s: of a later step than %d, which this run has just saved", path, step)
        try:
            _remove(path)
        except OSError as error:
            raise OSError(error.errno, f"cannot remove old checkpoint {path}: {error.strerror}") from error


def _verify(path: Path, names: Sequence[str] | None = None) -> None:
    """Raises ValueError naming the first file, of these or of all, that is not what was saved."""
    manifest = _manifest(path)
    for name in manifest["files"] if names is None else names:
        wanted = manifest["files"][name]
        try:
            size = (path / name).stat().st_size
            if size != wanted["size"]:
                raise ValueError(f"checkpoint file {path / name} is damaged: {size} bytes, {wanted['size']} were saved")
            with open(path / name, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ValueError(f"checkpoint file {path / name} cannot be read: {error.strerror}") from error
        if digest != wanted["sha256"]:
            raise ValueError(f"checkpoint file {path / name} is damaged: its sha256 is not the one saved")


def _manifest(path: Path) -> dict[str, Any]:
    file = path / "manifest.json"
    try:
        manifest = json.loads(file.read_bytes())
        saved = manifest.pop("sha256")
        intact = saved == _digest(manifest)
    except OSError as error:
        raise ValueError(f"checkpoint file {file} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"checkpoint file {file} is damaged: not a manifest") from error
    if not intact:
        raise ValueError(f"checkpoint file {file} is damaged: its sha256 is not the one saved")
    if manifest["format"] != FORMAT:
        raise ValueError(f"checkpoint file {file} has format {manifest['format']}; this version reads {FORMAT}")
    match = _NAME.fullmatch(path.name.removesuffix(REPLACED))
    if match and int(match[1]) != manifest["step"]:
        raise ValueError(f"checkpoint file {file} is of step {manifest['step']}: the folder was renamed")
    return manifest


def _missing(path: Path) -> bool:
    """A quick look (no hashing): the manifest or a file it names is missing or has another size."""
    try:
        files = _manifest(path)["files"]
        return any((path / name).stat().st_size != wanted["size"] for name, wanted in files.items())
    except (ValueError, OSError):
        return True


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _check_json(value: Any, where: str) -> None:
    """Refuse what json would fail on, or change without a word (keys that are not text)."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"checkpoint {where} has the key {key!r}: only text survives JSON, use str({key!r})")
            _check_json(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check_json(item, f"{where}[{index}]")
    elif value is not None and not isinstance(value, str | int | float):
        raise ValueError(f"checkpoint {where} is a {type(value).__name__}: not JSON; tensors go into a tensor group")
