"""One killable worker process, seen from the trainer: send a job, read replies, know when its time is up, kill it."""

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
ENDING_S = 0.5  # from the end of a process's replies to that of the process itself, at most
REPLY_GRACE_S = 1.0  # for the rest of a reply that has begun to arrive
REPLY_LIMIT = 256_000_000  # bytes, ten million rewards of tokens; a longer reply is a broken plugin


class Worker:
    """A process in its own session. `job` is free for the owner: whatever the worker is busy with, None when idle.

    `log` takes what the plugins print; in `progress` the worker writes the index of the call it is in.
    """

    def __init__(self, rewards: Sequence[Reward], memory_mb: int) -> None:
        self.log, self.progress = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        shared = self.progress.fileno()
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("worker.py")), str(shared)],
            pass_fds=[shared],
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
        self.job: Any = None
        self.inbox, self.outbox = bytearray(), memoryview(b"")
        self.heard = time.monotonic()  # when something last arrived
        self.due = self.heard + LOAD_LIMIT_S  # when the call in progress must have been answered
        path = [p or os.getcwd() for p in sys.path]
        self.send({"path": path, "memory_mb": memory_mb, "rewards": [asdict(r) for r in rewards]})

    @property
    def deadline(self) -> float:
        """`due`, or a moment later in the middle of a reply, which a long one that nobody reads is kept from ending."""
        return max(self.due, self.heard + REPLY_GRACE_S) if self.inbox else self.due

    def send(self, message: dict[str, Any]) -> None:
        self.outbox = memoryview(bytes(self.outbox) + (json.dumps(message) + "\n").encode("ascii"))
        self.flush()

    def flush(self) -> bool:
        """Write as much of the outbox as the pipe takes. Returns whether that was anything.

        A dead reader shows as the end of its replies.
        """
        before = len(self.outbox)
        try:
            while self.outbox:
                self.outbox = self.outbox[os.write(self.stdin, self.outbox[:65536]) :]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self.outbox = memoryview(b"")
        return len(self.outbox) < before

    def receive(self) -> list[dict[str, Any]] | None:
        """The replies that have arrived; None when the process is gone or talks nonsense."""
        try:
            data = os.read(self.stdout, 1 << 20)
        except BlockingIOError:
            return []
        self.heard = time.monotonic()
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
        """Whether the process, now gone, was ended by the limit it keeps when nobody else does (`worker.GRACE_S`)."""
        try:
            return self.process.wait(ENDING_S) == -signal.SIGALRM
        except subprocess.TimeoutExpired:
            return False

    def kill(self) -> str:
        """End the process and everything it started. Returns how it ended and the last line it printed."""
        returncode = self.process.poll()
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            self.process.kill()
        self.process.wait()
        last = self._last_line()
        for stream in (self.process.stdin, self.process.stdout, self.log, self.progress):
            if stream is not None:
                stream.close()
        how = "was killed" if returncode is None else f"ended with {_exit_text(returncode)}"
        return f"the worker process {how}{': ' + last if last else ''}"

    def current(self) -> int:
        """The index of the call in progress."""
        return int(os.pread(self.progress.fileno(), 12, 0) or 0)

    def forget_log(self) -> None:
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
