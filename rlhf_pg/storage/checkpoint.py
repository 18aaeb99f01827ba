"""A run's state as named groups of tensors + one JSON object, saved so that a kill at any moment loses nothing.

    checkpoints/step_00000010/model.safetensors       one file per group
                              random_rank1.safetensors  of several processes: what only this one has
                              state.json              the JSON object
                              manifest.json           format, step, size and sha256 of each file, tied tensors

A checkpoint is written into a temporary sibling, fsynced, and renamed; older ones are deleted only after that. No
pickle, ever. One launch writes to a directory (`RunDir` holds the lock); `latest` and `load` only read and may run
anywhere.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from rlhf_pg.storage.atomic_io import (
    REPLACED,
    TEMPORARY,
    clean,
    disk_error,
    fsync_directory,
    remove_folder,
    replace_folder,
    write_new,
)
from rlhf_pg.storage.tensor_file import aliases_of, write_tensors

FORMAT = 1
PROVED = 2  # from the second newest checkpoint on, a step has succeeded from each
OF_RANK = "of_rank"  # key of the state: a list with the part of each rank
_NAME = re.compile(r"step_(\d{8,})")
_GROUP = re.compile(r"[a-z][a-z0-9_]*")
_RANK_GROUP = re.compile(r"(.+)_rank(\d+)")  # a group that one of several ranks wrote
Tensors = Mapping[str, Mapping[str, Tensor]]  # by group, by name
log = logging.getLogger(__name__)


def save(directory: Path, step: int, tensors: Tensors, state: Mapping[str, Any], keep: int) -> Path:
    """Write `directory`/step_<step> and return it; then delete all but the newest `keep`.

    `directory` is the one that holds the step folders (`RunDir.checkpoints`). `tensors` may be on any device; dtype,
    shape and bits are kept; tensors that are one and the same memory (tied weights) are stored once and tied again by
    `load`. `state` is plain JSON (tuples come back as lists, NaN and infinity as they are). Saving a step again
    replaces it. Checkpoints of later steps belong to a future this run has left: deleted.

    Raises ValueError naming what cannot be stored, OSError naming the path and the free bytes when the disk refuses;
    earlier checkpoints are then still valid. Several processes save together by `distributed.checkpoint.save`.
    """
    writer = Writer(directory, step, state, keep)
    try:
        writer.begin()
        writer.publish([writer.write(tensors)])
    except OSError as error:
        failure = disk_error(writer.path, error)  # before anything is deleted: it counts the free bytes
        writer.abandon()
        raise failure from error
    writer.prune()
    return writer.path


def set_aside(directory: Path, step: int) -> Path | None:
    """Rename the checkpoint of `step` so that no run goes on from it, if there is an older one. Returns that one."""
    sound = {number: path for number, path in _checkpoints(directory) if not _incomplete(path)}
    earlier = max((number for number in sound if number < step), default=None)
    if step in sound and earlier is not None:
        sound[step].rename(directory / f"diverged_{sound[step].name}")
        fsync_directory(directory)
    return None if earlier is None else sound[earlier]


def rank_group(group: str, rank: int) -> str:
    """Return the name under which one of several ranks writes a group."""
    return f"{group}_rank{rank}"


class Writer:
    """A checkpoint while it is written: `begin`, `write` (each process its groups), `publish`, `prune`; or `abandon`.

    Raises ValueError for a step, a number to keep or a state that cannot be.
    """

    def __init__(self, directory: Path, step: int, state: Mapping[str, Any], keep: int):
        if keep < 1 or step < 0:
            raise ValueError(f"checkpoint step {step} with keep {keep}: step must be at least 0 and keep at least 1")
        _check_json(state, "state")
        self.directory, self.step, self.state, self.keep = directory, step, state, keep
        self.path = directory / f"step_{step:08d}"
        self.unfinished = directory / f"{TEMPORARY}{self.path.name}"

    def begin(self) -> None:
        """Create the folder that is written to until `publish`."""
        self.directory.mkdir(parents=True, exist_ok=True)
        clean(self.directory)
        self.unfinished.mkdir()

    def write(self, tensors: Tensors) -> dict[str, Any]:
        """Write a file per group. Returns their part of the manifest: size and sha256 of each, tied tensors."""
        files: dict[str, dict[str, Any]] = {}
        aliases: dict[str, dict[str, str]] = {}
        for group, named in tensors.items():
            if not _GROUP.fullmatch(group):
                raise ValueError(f"checkpoint group {group!r}: use lower-case letters, digits and _")
            aliases[group] = aliases_of(named)
            distinct = {name: tensor for name, tensor in named.items() if name not in aliases[group]}
            files[f"{group}.safetensors"] = write_tensors(self.unfinished / f"{group}.safetensors", distinct)
        return {"files": files, "aliases": aliases}

    def publish(self, parts: Sequence[Mapping[str, Any]]) -> None:
        """Write the state and the manifest of all `parts`, and move the checkpoint into its place."""
        self._write_manifest(parts)
        replace_folder(self.unfinished, self.path)

    def prune(self) -> None:
        """Delete checkpoints of later steps and all but the newest `keep`, counting only those with nothing missing.

        The one before the newest stays whatever `keep` is: it is the last from which a step is known to succeed.
        """
        newest_first = sorted(_checkpoints(self.directory), reverse=True)
        later = [path for step, path in newest_first if step > self.step]
        complete = [path for step, path in newest_first if step <= self.step and not _incomplete(path)]
        for path in [*later, *complete[max(self.keep, PROVED) :]]:
            if path in later:
                log.warning("removed %s: of a later step than %d, which this run has just saved", path, self.step)
            try:
                remove_folder(path)
            except OSError as error:
                raise OSError(error.errno, f"cannot remove old checkpoint {path}: {error.strerror}") from error

    def abandon(self) -> None:
        """Delete what is unfinished, as far as the disk lets it."""
        with suppress(OSError):
            clean(self.directory)

    def _write_manifest(self, parts: Sequence[Mapping[str, Any]]) -> None:
        text = json.dumps(self.state).encode()
        write_new(self.unfinished / "state.json", text)
        files = {name: facts for part in parts for name, facts in part["files"].items()}
        files["state.json"] = {"size": len(text), "sha256": hashlib.sha256(text).hexdigest()}
        aliases = {group: tied for part in parts for group, tied in part["aliases"].items()}
        manifest: dict[str, Any] = {"format": FORMAT, "step": self.step, "files": files, "aliases": aliases}
        manifest["sha256"] = _digest(manifest)
        write_new(self.unfinished / "manifest.json", json.dumps(manifest, indent=1).encode())
        fsync_directory(self.unfinished)


def latest(directory: Path) -> Path | None:
    """Return the checkpoint of the highest step whose every byte verifies, or None. Logs each damaged one it skips."""
    for _, path in sorted(_checkpoints(directory), reverse=True):
        try:
            _verify(path)
        except ValueError as damage:
            log.warning("skipped: %s", damage)
        else:
            return path
    return None


def load(path: Path, rank: int = 0) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Return (tensors, state) as they were given to `save`, on the CPU, in memory that no file backs.

    Of what each rank wrote by itself, that of `rank`, or of rank 0 if fewer saved. Verifies size and sha256 of every
    file it reads first. Raises ValueError naming the damaged or missing file.
    """
    manifest = _manifest(path)
    of_rank = {group: _RANK_GROUP.fullmatch(group) for group in manifest["aliases"]}
    rank = rank if str(rank) in {match[2] for match in of_rank.values() if match} else 0
    groups = {m[1] if m else group: group for group, m in of_rank.items() if not m or m[2] == str(rank)}
    _verify(path, [*(f"{group}.safetensors" for group in groups.values()), "state.json"])
    tensors: dict[str, dict[str, Tensor]] = {}
    for name, group in groups.items():
        with safe_open(path / f"{group}.safetensors", framework="pt") as file:
            # clone: the file may be pruned, or its disk vanish, while a mapped tensor still reads from it
            tensors[name] = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
        aliases = manifest["aliases"][group]
        tensors[name].update({alias: tensors[name][owner] for alias, owner in aliases.items()})
    state = json.loads((path / "state.json").read_bytes())
    states = state.pop(OF_RANK, None)
    return tensors, {**state, **states[rank]} if states else state


def exists(directory: Path) -> bool:
    """Return whether any checkpoint is there, damaged ones included."""
    return bool(_checkpoints(directory))


def _checkpoints(directory: Path) -> list[tuple[int, Path]]:
    """Return (step, path) of each checkpoint; one caught while it was being replaced counts where it stands."""
    path_of_step: dict[int, Path] = {}
    for path in sorted(directory.glob("step_*"), reverse=True):  # step_1.replaced before step_1, which overrides it
        if match := _NAME.fullmatch(path.name.removesuffix(REPLACED)):
            path_of_step[int(match[1])] = path
    return list(path_of_step.items())


def _verify(path: Path, names: Sequence[str] | None = None) -> None:
    """Raise ValueError naming the first file, of `names` or of all, that is not what was saved."""
    manifest = _manifest(path)
    for name in manifest["files"] if names is None else names:
        saved = manifest["files"][name]
        try:
            size = (path / name).stat().st_size
            if size != saved["size"]:
                raise ValueError(f"checkpoint file {path / name} is damaged: {size} bytes, {saved['size']} were saved")
            with open(path / name, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ValueError(f"checkpoint file {path / name} cannot be read: {error.strerror}") from error
        if digest != saved["sha256"]:
            raise ValueError(f"checkpoint file {path / name} is damaged: its sha256 is not the one saved")


def _manifest(path: Path) -> dict[str, Any]:
    """Read a checkpoint's manifest. Raises ValueError for a damaged one, another format, or a renamed folder."""
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


def _incomplete(path: Path) -> bool:
    """Return whether the manifest or a file it names is missing or has another size; nothing is hashed."""
    try:
        files = _manifest(path)["files"]
        return any((path / name).stat().st_size != saved["size"] for name, saved in files.items())
    except (ValueError, OSError):
        return True


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _check_json(value: Any, where: str) -> None:
    """Raise ValueError for what JSON cannot hold, or would change silently (keys that are not text)."""
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
