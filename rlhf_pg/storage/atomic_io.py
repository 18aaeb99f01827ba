"""Files that survive SIGKILL and power loss: written beside their place, fsynced, then renamed into it."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

TEMPORARY = ".tmp-"  # prefix of everything unfinished; whatever bears it may be deleted once its writer is gone


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write every byte: one os.write may write less (always above 2 GiB). Raises OSError, with a part written."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def write_atomic(path: Path, data: bytes) -> None:
    """Give `path` this content: a reader, at any moment, sees the old content or the new, whole.

    Raises OSError naming the path and the free bytes; the old content is then still there.
    """
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    try:
        write_new(temporary, data)
        os.replace(temporary, path)
        fsync_directory(path.parent)
    except OSError as error:
        raise disk_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_new(path: Path, data: bytes) -> None:
    """Write and fsync a file nobody reads yet."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def append(path: Path, data: bytes) -> None:
    """Append all of `data` or nothing, fsynced. Raises OSError naming the path; what was there stays as it was."""
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
    """Make the names in `directory` durable, not only the files they name."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems without directory fsync say so like this
            raise
    finally:
        os.close(descriptor)


def remove_leftovers(directory: Path) -> None:
    """Delete what killed writers left. Only for the one process that may write here."""
    for path in directory.glob(f"{TEMPORARY}*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def disk_error(path: Path, error: OSError) -> OSError:
    """The same error (same errno), saying which path and how many bytes are free there."""
    existing = next((p for p in (path, *path.absolute().parents) if p.exists()), Path("/"))
    free = shutil.disk_usage(existing).free
    reason = error.strerror or str(error)
    return OSError(error.errno, f"cannot write {path}: {reason} ({free} bytes free there)")
