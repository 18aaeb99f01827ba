"""One worker process as the trainer sees it: send a job, read replies, tell when a call is late, kill the process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlhf_pg.rewards.plugin import Reward

LOAD_LIMIT_S = 120.0  # to import the plugins and run their `setup`
EXIT_LIMIT_S = 0.5  # between the end of a process's replies and the end of the process
REPLY_GRACE_S = 1.0  # for the rest of a reply that has begun to arrive
REPLY_LIMIT = 256_000_000  # bytes, ten million rewards of tokens; a longer reply is a broken plugin


class WorkerProcess:
    """A process in its own session, which runs `worker.py`.

    `job` belongs to the caller: the job in progress, None when idle. The process writes what plugins print to `log` and
    the index of the call in progress to `progress`.
    """

    def __init__(self, rewards: Sequence[Reward]) -> None:
        self.log, self.progress = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        progress = self.progress.fileno()
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("worker.py")), str(progress)],
            pass_fds=[progress],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            start_new_session=True,
            bufsize=0,
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin.fileno(), self.process.stdout.fileno()
        os.set_blocking(self.stdin, False)
        os.set_blocking(self.stdout, False)
        self.ready = False
        self.returncode: int | None = None
        self.job: Any = None
        self.inbox, self.outbox = bytearray(), memoryview(b"")
        self.last_read = time.monotonic()
        self.due = self.last_read + LOAD_LIMIT_S  # when the call in progress must have been answered
        path = [p or os.getcwd() for p in sys.path]
        self.send({"path": path, "rewards": [asdict(r) for r in rewards]})

    @property
    def deadline(self) -> float:
        """When the call in progress is late: at `due`, or soon after the last byte read of an incomplete reply.

        A reply longer than the pipe cannot end while nobody reads it.
        """
        return max(self.due, self.last_read + REPLY_GRACE_S) if self.inbox else self.due

    def send(self, message: dict[str, Any]) -> None:
        """Queue a message and write as much as the pipe takes. Raises TypeError for what is no JSON value."""
        self.outbox = memoryview(bytes(self.outbox) + (json.dumps(message) + "\n").encode("ascii"))
        self.flush()

    def flush(self) -> bool:
        """Write as much of the outbox as the pipe takes, and return whether that was anything.

        A process that has ended is noticed by `receive`, not here.
        """
        length = len(self.outbox)
        try:
            while self.outbox:
                self.outbox = self.outbox[os.write(self.stdin, self.outbox[:65536]) :]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self.outbox = memoryview(b"")
        return len(self.outbox) < length

    def receive(self) -> list[dict[str, Any]] | None:
        """Return the replies that have arrived, or None when the process has ended or breaks the protocol."""
        try:
            data = os.read(self.stdout, 1 << 20)
        except BlockingIOError:
            return []
        self.last_read = time.monotonic()
        self.inbox += data
        *lines, self.inbox = self.inbox.split(b"\n") if b"\n" in data else [self.inbox]
        try:
            replies = [json.loads(line) for line in lines]
        except ValueError:
            return None
        if not all(isinstance(r, dict) for r in replies) or len(self.inbox) > REPLY_LIMIT:
            return None
        return replies if replies or data else None

    def ended_by_its_timer(self) -> bool:
        """Return whether the ended process was killed by its own timer (`worker.GRACE_S`), so its call was late."""
        try:
            return self.process.wait(EXIT_LIMIT_S) == -signal.SIGALRM
        except subprocess.TimeoutExpired:
            return False

    def kill(self) -> str:
        """Kill the process and everything it started. Returns how it ended and the last line it printed.

        `returncode` is then how it had ended by itself, None if it had not.
        """
        returncode = self.returncode = self.process.poll()
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            self.process.kill()
        self.process.wait()
        last_line = self._last_line()
        for stream in (self.process.stdin, self.process.stdout, self.log, self.progress):
            if stream is not None:
                stream.close()
        how = "was killed" if returncode is None else f"ended with {_exit_text(returncode)}"
        return f"the worker process {how}{': ' + last_line if last_line else ''}"

    def current_index(self) -> int:
        """Return the index of the call in progress, or of the last one."""
        return int(os.pread(self.progress.fileno(), 12, 0) or 0)

    def clear_log(self) -> None:
        """Drop what was printed so far, so that a chatty plugin cannot fill the disk."""
        os.ftruncate(self.log.fileno(), 0)

    def _last_line(self) -> str:
        size = self.log.seek(0, os.SEEK_END)
        self.log.seek(max(0, size - 2000))
        lines = self.log.read().decode(errors="replace").strip("\0 \n").splitlines()
        return lines[-1][:300] if lines else ""


def _exit_text(returncode: int) -> str:
    if returncode >= 0:
        return f"exit status {returncode}"
    try:
        return signal.Signals(-returncode).name
    except ValueError:
        return f"signal {-returncode}"
