"""How a contender's process talks to the benchmark: one JSON object a line, a command in, an answer out.

The process does one round on each command and waits in between, so contenders never run at the same time. What a
library prints goes to the log (standard error), never between the answers.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

Answer = dict[str, Any]


class Timer:
    """Seconds since its construction, and the cores this process kept busy meanwhile (waiting in a loop counts)."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def stop(self) -> Answer:
        seconds = time.perf_counter() - self.wall
        return {"seconds": seconds, "cores": (time.process_time() - self.cpu) / seconds}


class Port:
    """A contender's end of the connection, opened before anything else is imported."""

    def __init__(self) -> None:
        self._out: IO[str] = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self.imported_mb = 0.0  # resident memory after the imports

    def imports_done(self) -> None:
        """Note the memory after the imports: called when nothing is loaded yet."""
        self.imported_mb = resident_mb()

    def ready(self, **facts: Any) -> None:
        """Say that everything is loaded and the first command may come."""
        threads = sys.modules["torch"].get_num_threads() if "torch" in sys.modules else 0
        self._send({"imported_mb": self.imported_mb, "loaded_mb": peak_mb(), "threads": threads, **facts})

    def command(self) -> Answer | None:
        """Return the next command, None when there will be none."""
        line = sys.stdin.readline()
        return json.loads(line) if line.strip() else None

    def answer(self, answer: Answer) -> None:
        """Send what one round measured, with the most memory the process has held so far."""
        self._send({**answer, "peak_mb": peak_mb()})

    def serve(self, take: Callable[[Answer], Answer], **facts: Any) -> None:
        """Say ready, then one round per command, timed unless the round timed itself (`seconds` in its answer)."""
        self.ready(**facts)
        while (command := self.command()) is not None:
            timer = Timer()
            answer = take(command)
            self.answer(timer.stop() | answer)

    def _send(self, message: Answer) -> None:
        self._out.write(json.dumps(message) + "\n")
        self._out.flush()


def peak_mb() -> float:
    """Return the most memory this process has held, in MiB.

    /proc's high-water mark where there is one: ru_maxrss also remembers the process this one was forked from.
    """
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if _mac() else 2**10)


def resident_mb() -> float:
    """Return the memory this process holds now (its peak where the system does not say), in MiB."""
    return _status("VmRSS") or peak_mb()


def _status(key: str) -> float | None:
    path = Path("/proc/self/status")
    if not path.exists():
        return None
    values = [line.split()[1] for line in path.read_text().splitlines() if line.startswith(f"{key}:")]
    return int(values[0]) / 2**10 if values else None


def _mac() -> bool:
    return sys.platform == "darwin"
