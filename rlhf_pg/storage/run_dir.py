"""The folder of one run: one writer at a time, files replaced atomically, a log that is cut back to a checkpoint.

metrics.jsonl   a flat object per step          rollouts/step_00000010.jsonl   samples
checkpoints/    see checkpoint.py               .lock                          held while a process writes here
run.json        what ran, launch by launch      eval.jsonl                     an object per evaluation and problem
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import math
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from rlhf_pg.storage import checkpoint
from rlhf_pg.storage.atomic_io import append, clean, fsync_directory, write_atomic

log = logging.getLogger(__name__)


class RunDir:
    """A run's folder, made by `RunDir.open`. `resume_from`: the intact checkpoint to go on from, None: start anew."""

    def __init__(self, path: Path, lock: int | None) -> None:
        self.path = path
        self.writes = lock is not None  # False: another process writes the run, and no method here does
        self.checkpoints = path / "checkpoints"
        self.rollouts = path / "rollouts"
        self.metrics = path / "metrics.jsonl"
        self.evaluations = path / "eval.jsonl"
        self.resume_from: Path | None = None
        self.launches: list[Any] = []  # of this run, as in run.json
        self._lock: int | None = lock
        self._started = time.monotonic()
        self._before_s = 0.0

    @classmethod
    def open(cls, path: Path, resume: Literal["never", "auto", "must"]) -> RunDir:
        """Create or take over the folder of a run and hold its lock until `close` or the end of the process.

        Writes and fsyncs a probe first, so that a run that cannot save fails before it loads a model. With "auto" and
        no checkpoint at all, what an earlier run logged is dropped. Raises ValueError saying what to change: not
        writable, another live run (its pid), an earlier run and "never", no intact checkpoint and "must" (or "auto"
        with only damaged ones).
        """
        try:
            for folder in (path, path / "checkpoints", path / "rollouts"):
                folder.mkdir(parents=True, exist_ok=True)
            run = cls(path, _take_lock(path))
        except OSError as error:
            raise ValueError(_cannot_write(path, error)) from error
        try:
            run._begin(resume)
        except OSError as error:
            run.close()
            raise ValueError(_cannot_write(path, error)) from error
        except BaseException:
            run.close()
            raise
        os.register_at_fork(after_in_child=run.close)  # a forked worker that outlives us must not keep the lock
        return run

    @classmethod
    def follow(cls, path: Path, resume_from: Path | None) -> RunDir:
        """Return the folder of a run that another process of this launch has opened; it writes nothing.

        Raises ValueError when this machine does not see the folder.
        """
        if not (path / ".lock").exists():
            raise ValueError(
                f"run.dir {path} is not the folder that rank 0 writes to: it must be on a disk that all machines share"
            )
        run = cls(path, None)
        run.resume_from = resume_from
        return run

    def _begin(self, resume: Literal["never", "auto", "must"]) -> None:
        self._probe()
        if resume == "never" and is_used(self.path):
            raise ValueError(
                f"run.dir {self.path} holds an earlier run: continue it with run.resume=auto, or choose another run.dir"
            )
        for folder in (self.checkpoints, self.path, self.rollouts):
            clean(folder)
        self.resume_from = checkpoint.latest(self.checkpoints)
        if self.resume_from is None and checkpoint.exists(self.checkpoints):
            raise ValueError(
                f"no checkpoint in {self.checkpoints} is intact (the log names the damaged files): restore one, "
                "or start anew in another run.dir"
            )
        if self.resume_from is None and resume == "must":
            raise ValueError(f"run.resume=must, but {self.checkpoints} has no checkpoint; use run.resume=auto to start")
        if self.resume_from is None:
            self.truncate_after(-1)

    def _probe(self) -> None:
        for folder in (self.path, self.checkpoints, self.rollouts):
            probe = folder / "probe"
            write_atomic(probe, b"x" * 4096)
            probe.unlink()

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Append one line and fsync it. Values: numbers, text, None, numpy and torch scalars; NaN becomes null.

        Raises ValueError for a nested value or a row without an int `step`; OSError naming the file when the disk
        refuses, with the earlier lines as they were.
        """
        if not self.writes:
            return
        plain = as_json(row)
        if type(plain.get("step")) is not int:
            raise ValueError(f"a metrics row needs an int step, this one has {row.get('step')!r}")
        for key, value in plain.items():
            if isinstance(value, list | dict):
                raise ValueError(
                    f"metric {key!r} is a {type(row[key]).__name__}: a metrics row is flat, one number a key"
                )
        append(self.metrics, json.dumps(plain).encode() + b"\n")

    def truncate_after(self, step: int, *, rollouts: int | None = None) -> None:
        """Drop lines of metrics and evaluations after `step`, damaged ones too, and rollouts files after `rollouts`
        (default: `step`; a step may be sampled before it is learned from)."""
        if not self.writes:
            return
        for log_file in (self.metrics, self.evaluations):
            _cut(log_file, step)
        for path in self.rollouts.glob("step_*.jsonl"):
            number = path.stem.removeprefix("step_")
            if number.isdigit() and int(number) > (step if rollouts is None else rollouts):
                path.unlink()
        fsync_directory(self.rollouts)

    def write_rollouts(self, step: int, rows: list[dict[str, Any]]) -> Path:
        """Write rollouts/step_<step>.jsonl, one object a line, replacing an earlier one of this step."""
        path = self.rollouts / f"step_{step:08d}.jsonl"
        if not self.writes:
            return path
        write_atomic(path, b"".join(json.dumps(as_json(row)).encode() + b"\n" for row in rows))
        return path

    def write_evaluation(self, step: int, problems: list[dict[str, Any]]) -> None:
        """Write the lines of the evaluation after `step` to eval.jsonl, in place of an earlier one of this step."""
        if not self.writes:
            return
        _cut(self.evaluations, step - 1)
        rows = [{"step": step, **as_json(problem)} for problem in problems]
        append(self.evaluations, b"".join(json.dumps(row).encode() + b"\n" for row in rows))

    def add_launch(self, launch: Mapping[str, Any]) -> None:
        """Add what runs now to run.json, after the earlier launches of a run that is resumed."""
        file, earlier = self.path / "run.json", []
        if self.resume_from is not None:
            with suppress(OSError, ValueError, KeyError, TypeError):  # an older run has none, and nothing depends on it
                earlier = list(json.loads(file.read_text())["launches"])
        self.launches = [*earlier, dict(launch)]
        self.write_json("run.json", {"launches": self.launches})

    def write_json(self, name: str, value: Any) -> Path:
        """Write `name` (relative to the run) as readable JSON, atomically; NaN and infinity become null."""
        return self.write_text(name, json.dumps(as_json(value), indent=2) + "\n")

    def write_text(self, name: str, text: str) -> Path:
        """Write `name` (relative to the run), atomically."""
        path = self.path / name
        if self.writes:
            write_atomic(path, text.encode())
        return path

    @property
    def elapsed_s(self) -> float:
        """Wall seconds since `open`, plus those given to `continue_clock`: a checkpoint has them."""
        return self._before_s + time.monotonic() - self._started

    def continue_clock(self, elapsed_s: float) -> None:
        """Count from the `elapsed_s` a checkpoint recorded."""
        self._before_s = elapsed_s

    def close(self) -> None:
        """Release the lock; a second call does nothing."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> RunDir:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def is_used(path: Path) -> bool:
    """Return whether a run has logged a step or saved a checkpoint in the folder."""
    metrics = path / "metrics.jsonl"
    return checkpoint.exists(path / "checkpoints") or (metrics.exists() and metrics.stat().st_size > 0)


def _take_lock(path: Path) -> int:
    """Lock `path`/.lock and write pid and host into it. Returns its descriptor. The lock ends with its process, so that
    none is ever stale."""
    descriptor = os.open(path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
    except BlockingIOError:
        holder = {"pid": "unknown", "host": "unknown"}
        with suppress(ValueError):  # locked a moment ago, not yet written
            holder = json.loads(os.pread(descriptor, 4096, 0))
        os.close(descriptor)
        raise ValueError(
            f"run.dir {path} is in use by process {holder['pid']} on {holder['host']}: "
            "wait for it, stop it, or choose another run.dir"
        ) from None
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def written_by(path: Path) -> bool | None:
    """Return whether the process that locked a run's folder last still lives; None: no lock, or another machine's.

    Does not try to lock: that could make a run fail which starts at this moment.
    """
    try:
        holder = json.loads((path / ".lock").read_text())
        if holder["host"] != socket.gethostname():
            return None
        os.kill(int(holder["pid"]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None
    return True


def _cannot_write(path: Path, error: OSError) -> str:
    hint = "choose a run.dir on a disk with space that this user may write to"
    if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
        hint = "its file system has no file locks; choose a run.dir on one that has"
    return f"run.dir {path} cannot be used: {error.strerror}; {hint}"


def _cut(file: Path, step: int) -> None:
    """Drop the lines of a log after `step`, and damaged ones."""
    if not file.exists():
        return
    content, lines = file.read_bytes(), []
    for line in filter(None, content.split(b"\n")):
        number = _step_of(line)
        if number is None:
            log.warning("dropped a damaged line of %s: %r", file, line[:80])
        elif number <= step:
            lines.append(line + b"\n")
    if b"".join(lines) != content:
        write_atomic(file, b"".join(lines))


def _step_of(line: bytes) -> int | None:
    """Return the step of a metrics line, None for a damaged line."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    step = row.get("step") if isinstance(row, dict) else None
    return step if isinstance(step, int) else None


def as_json(value: Any) -> Any:
    """Return a value as strict JSON has it: numpy and torch as numbers and lists, NaN and infinity as null."""
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if hasattr(value, "tolist"):
        return as_json(value.tolist())
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    raise ValueError(f"{value!r} is a {type(value).__name__}: it cannot be written as JSON")
