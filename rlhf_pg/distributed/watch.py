"""A thread beside the training that ends the process when a wait for the others outlasts its deadline, or when another
process has failed: the main thread may be deep inside a collective that never returns.

Causes are in the process group's store: the first process to fail writes its own, the others read it and say so.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

LOOK_S = 0.5  # between two looks of the thread
COME_OUT_S = 10.0  # for the main thread to come out by itself, with an error of its own, after another rank has failed
FAILED, LEFT = "rlhf_pg/failed", "rlhf_pg/left"  # keys: who failed first and why; how many have left


class Watch:
    """Watches the waits of one rank. `deadline_s`: of a single wait."""

    def __init__(self, rank: int, deadline_s: float, store: Any):
        self.rank, self.deadline_s, self.store = rank, deadline_s, store
        self._wait: tuple[str, float] | None = None  # what for, since when
        self._done = threading.Event()
        self._left: bool | None = None
        threading.Thread(target=self._look, name="watch", daemon=True).start()

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Inside, this process waits for others. May be nested: the outer wait goes on counting."""
        before = self._wait
        self._wait = before or (what, time.monotonic())
        try:
            yield
        finally:
            self._wait = before

    def cause(self, wait_s: float = 0.0) -> str:
        """Who failed first and why, if another rank did; looked for during `wait_s` seconds. "" = none said so."""
        until = time.monotonic() + wait_s
        while True:
            found = self._failure()
            if found and found["rank"] != self.rank:
                return f"rank {found['rank']} failed first: {found['text']}"
            if found or time.monotonic() >= until:
                return ""
            time.sleep(0.05)

    def leave(self, text: str, size: int, wait_s: float) -> bool:
        """Write down why this rank fails, unless another did before. Returns whether all `size` ranks have left."""
        if self._left is None:
            self.close()
            self._left = self._leave(text, size, wait_s)
        return self._left

    def _leave(self, text: str, size: int, wait_s: float) -> bool:
        try:
            self._publish(text, stack=False)
            self.store.add(LEFT, 1)
            until = time.monotonic() + wait_s
            while time.monotonic() < until:
                if self.store.add(LEFT, 0) >= size:
                    return True
                time.sleep(0.05)
        except RuntimeError:  # the store went with the process that kept it
            return False
        return False

    def close(self) -> None:
        """End the thread."""
        self._done.set()

    def _look(self) -> None:
        failed_since: float | None = None
        while not self._done.wait(LOOK_S):
            wait = self._wait
            if wait and time.monotonic() - wait[1] > self.deadline_s:
                text = f"waited more than {self.deadline_s:g} s (run.timeout_s) for {wait[0]}"
                self._end(text, stack=True)
            try:
                found = self._failure()
            except RuntimeError:  # the store is gone: so is its process, and the next collective says so
                return
            if found is None:
                continue
            failed_since = failed_since or time.monotonic()
            if found["stack"] or time.monotonic() - failed_since > COME_OUT_S:
                self._end(f"rank {found['rank']} failed first: {found['text']}", stack=found["stack"])

    def _failure(self) -> dict | None:
        return json.loads(self.store.get(FAILED)) if self.store.check([FAILED]) else None

    def _publish(self, text: str, stack: bool) -> None:
        """Only the first one counts."""
        self.store.compare_set(FAILED, "", json.dumps({"rank": self.rank, "text": text, "stack": stack}))

    def _end(self, text: str, stack: bool) -> None:
        """Say why, show where every thread is, and end the process."""
        if self._done.is_set():
            return
        with suppress(RuntimeError):
            self._publish(text, stack)
        print(f"rlhf-pg (rank {self.rank}): {text}", file=sys.stderr, flush=True)
        if stack:
            faulthandler.dump_traceback(sys.stderr, all_threads=True)
        sys.stderr.flush()
        os._exit(1)
