"""One run state = named groups of tensors + one JSON object, saved so that a kill at any moment loses nothing.

    checkpoints/step_00000010/weights.safetensors     one file per group
                              state.json              the JSON object
                              manifest.json           format, step, size and sha256 of each file, tied tensors

A checkpoint is written into a temporary sibling, fsynced, and renamed; older ones go only after that. No pickle, ever.
One process writes to a directory (`RunDir` holds the lock); `latest` and `load` only read and may run anywhere.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from rlhf_pg.train.durable import TEMPORARY, disk_error, fsync_directory, remove_leftovers, write_all, write_new
from rlhf_pg.train.state import tensor_bytes

FORMAT = 1
REPLACED = ".replaced"  # suffix of a checkpoint while a new one of the same step takes its place
_NAME = re.compile(r"step_(\d{8,})")
_GROUP = re.compile(r"[a-z][a-z0-9_]*")
_DTYPES = {  # names of the safetensors format
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
log = logging.getLogger(__name__)


def save(
    directory: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], keep: int
) -> Path:
    """Write `directory`/step_<step> and return it; then delete all but the newest `keep`.

    `directory` is the one that holds the step folders (`RunDir.checkpoints`). `tensors` maps group name -> tensor name
    -> tensor of any device; dtype, shape and bits are kept; tensors that are one and the same memory (tied weights)
    are stored once and tied again by `load`. `state` is plain JSON (tuples come back as lists, NaN and infinity as they
    are). Saving a step again replaces it. Checkpoints of later steps belong to a future this run has left: deleted.

    Raises ValueError for what cannot be stored (naming it), OSError naming the path and the free bytes when the disk
    refuses; earlier checkpoints are then still valid.
    """
    if keep < 1 or step < 0:
        raise ValueError(f"checkpoint step {step} with keep {keep}: step must be at least 0 and keep at least 1")
    _check_json(state, "state")
    final = directory / f"step_{step:08d}"
    temporary = directory / f"{TEMPORARY}{final.name}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        clean(directory)
        temporary.mkdir()
        _write_files(temporary, step, tensors, state)
        _publish(temporary, final)
    except OSError as error:
        failure = disk_error(final, error)  # before cleaning: the free bytes at the failure
        with suppress(OSError):
            clean(directory)
        raise failure from error
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


def load(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Read (tensors, state) as given to `save`, on the CPU, in memory of their own.

    Verifies size and sha256 of every file first. Raises ValueError naming the damaged or missing file.
    """
    manifest = _verify(path)
    tensors: dict[str, dict[str, Tensor]] = {}
    for group, aliases in manifest["aliases"].items():
        with safe_open(path / f"{group}.safetensors", framework="pt") as file:
            # clone: the file may be pruned, or its disk vanish, while a mapped tensor still reads from it
            tensors[group] = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        tensors[group].update({alias: tensors[group][owner] for alias, owner in aliases.items()})
    return tensors, json.loads((path / "state.json").read_bytes())


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


def _write_files(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
) -> None:
    files: dict[str, dict[str, Any]] = {}
    aliases: dict[str, dict[str, str]] = {}
    for group, named in tensors.items():
        if not _GROUP.fullmatch(group):
            raise ValueError(f"checkpoint group {group!r}: use lower-case letters, digits and _")
        aliases[group] = _aliases(named)
        distinct = {name: tensor for name, tensor in named.items() if name not in aliases[group]}
        files[f"{group}.safetensors"] = _write_tensors(folder / f"{group}.safetensors", distinct)
    text = json.dumps(state).encode()
    write_new(folder / "state.json", text)
    files["state.json"] = {"size": len(text), "sha256": hashlib.sha256(text).hexdigest()}
    manifest: dict[str, Any] = {"format": FORMAT, "step": step, "files": files, "aliases": aliases}
    manifest["sha256"] = _digest(manifest)
    write_new(folder / "manifest.json", json.dumps(manifest, indent=1).encode())
    fsync_directory(folder)


def _write_tensors(path: Path, named: Mapping[str, Tensor]) -> dict[str, Any]:
    """Write one safetensors file, a tensor at a time (the library would copy a whole group to the CPU). -> size, sha256

    Format: 8 bytes little-endian header length, JSON header padded with spaces to 8 bytes, then the tensors' bytes.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    order = sorted(named, key=lambda name: (-named[name].element_size(), name))  # widest first keeps all aligned
    end = 0
    for name in order:
        tensor = named[name]
        if tensor.dtype not in _DTYPES or name == "__metadata__":
            raise ValueError(f"checkpoint tensor {path.stem}/{name} of {tensor.dtype} cannot be stored as safetensors")
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    digest = hashlib.sha256()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        for data in itertools.chain([len(head).to_bytes(8, "little"), head], (tensor_bytes(named[n]) for n in order)):
            digest.update(data)
            write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return {"size": 8 + len(head) + end, "sha256": digest.hexdigest()}


def _aliases(named: Mapping[str, Tensor]) -> dict[str, str]:
    """name -> the earlier name of the very same memory, seen the same way."""
    owners: dict[Any, str] = {}
    aliases: dict[str, str] = {}
    for name, t in named.items():
        memory = t.untyped_storage().data_ptr()
        view = (t.device, memory, t.storage_offset(), t.dtype, t.shape, t.stride()) if t.numel() else name
        owner = owners.setdefault(view, name)
        if owner != name:
            aliases[name] = owner
    return aliases


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


def _verify(path: Path) -> dict[str, Any]:
    """Return the manifest. Raises ValueError naming the first file that is not what was saved."""
    manifest = _manifest(path)
    for name, wanted in manifest["files"].items():
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
    return manifest


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
