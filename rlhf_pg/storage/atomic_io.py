"""Files and folders that survive SIGKILL and power loss: written beside their place, fsynced, renamed into it."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path

TEMPORARY = ".tmp-"  # prefix of what is unfinished: it may be deleted once its writer is gone
REPLACED = ".replaced"  # suffix of a folder while another takes its place


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write every byte: one os.write may write less (always above 2 GiB). Raises OSError, with a part written."""
    remaining = memoryview(data)
    while remaining:
        remaining = remaining[os.write(descriptor, remaining) :]


def write_atomic(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Replace the content of `path`: at any moment a reader sees all of the old content or all of the new.

    `mode`: the permissions of the new file, less the umask.

    Raises OSError naming the path and the free bytes; the old content is then still there.
    """
    temporary = path.with_name(f"{TEMPORARY}{path.name}.{os.getpid()}")
    try:
        write_new(temporary, data, mode)
        os.replace(temporary, path)
        fsync_directory(path.parent)
    except OSError as error:
        raise disk_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_new(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write and fsync a file that nobody reads yet."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def append(path: Path, data: bytes) -> None:
    """Append all of `data` or nothing, fsynced. Raises OSError naming the path; the earlier content then stays."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            size = os.fstat(descriptor).st_size
            try:
                write_all(descriptor, data)
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)
    except OSError as error:
        raise disk_error(path, error) from error


def fsync_directory(directory: Path) -> None:
    """Make the names in `directory` durable; fsync of a file does this for its content only."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # from file systems that cannot fsync a directory
            raise
    finally:
        os.close(descriptor)


def usual_modes(folder: Path) -> None:
    """Give each file of a folder the mode of what is written here, 0644 less the umask; safetensors' own are 0600."""
    example = folder / f"{TEMPORARY}mode"
    os.close(os.open(example, os.O_CREAT | os.O_CLOEXEC, 0o644))
    mode = stat.S_IMODE(example.stat().st_mode)
    example.unlink()
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink() and stat.S_IMODE(file.stat().st_mode) != mode:
            file.chmod(mode)


def replace_folder(unfinished: Path, folder: Path) -> None:
    """Rename a folder that is completely written to `folder`, which may exist.

    At every moment the new folder or the old one is there, complete; after a kill `clean` gives it its name. Only the
    rename is fsynced: against power loss the writer fsyncs its files first.
    """
    replaced = folder.with_name(folder.name + REPLACED)
    if folder.exists():
        os.rename(folder, replaced)
    os.rename(unfinished, folder)
    fsync_directory(folder.parent)
    if replaced.exists():
        remove_folder(replaced)


def remove_folder(folder: Path) -> None:
    """Delete a folder; its name goes first, so that a kill in the middle does not leave a damaged one."""
    removed = folder.with_name(f"{TEMPORARY}removed-{folder.name}")
    os.rename(folder, removed)
    shutil.rmtree(removed)


def clean(directory: Path) -> None:
    """Finish or undo what killed writers began. Only for the one process that may write here."""
    for replaced in directory.glob(f"*{REPLACED}"):
        folder = replaced.with_name(replaced.name.removesuffix(REPLACED))
        if folder.exists():
            remove_folder(replaced)
        else:
            os.rename(replaced, folder)
    for path in directory.glob(f"{TEMPORARY}*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def disk_error(path: Path, error: OSError) -> OSError:
    """Return an error of the same errno that names the path and how many bytes are free there."""
    existing = next((p for p in (path, *path.absolute().parents) if p.exists()), Path("/"))
    free = shutil.disk_usage(existing).free
    reason = error.strerror or str(error)
    return OSError(error.errno, f"cannot write {path}: {reason} ({free} bytes free there)")
