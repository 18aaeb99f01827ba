"""A thread beside the training that ends the process when a wait for the others outlasts its timeout, or when another
process has failed: the main thread may be deep inside a collective that never returns.

Causes are in the process group's store: the first process to fail writes its own, the others read and print it.
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

POLL_S = 0.5  # between two looks at the wait and at the store
MAIN_THREAD_S = 10.0  # for the main thread to end by itself, with an error of its own, after another rank has failed
FAILED, ENDING = "rlhf_pg/failed", "rlhf_pg/left"  # keys: who failed first and why; how many ranks are ending


class Watchdog:
    """Watches the waits of one rank. `timeout_s`: the longest a single wait may take."""

    def __init__(self, rank: int, timeout_s: float, store: Any):
        self.rank, self.timeout_s, self.store = rank, timeout_s, store
        self._wait: tuple[str, float] | None = None  # for what, since when
        self._closed = threading.Event()
        self._all_ending: bool | None = None  # None: not reported yet
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Surround a wait for other processes. May be nested: the outer wait goes on counting."""
        outer = self._wait
        self._wait = outer or (what, time.monotonic())
        try:
            yield
        finally:
            self._wait = outer

    def cause(self, wait_s: float = 0.0) -> str:
        """Return which other rank failed first and why, waiting up to `wait_s` seconds for it; "" if none reported."""
        until = time.monotonic() + wait_s
        while True:
            failure = self._first_failure()
            if failure and failure["rank"] != self.rank:
                return _text(failure)
            if failure or time.monotonic() >= until:
                return ""
            time.sleep(0.05)

    def report(self, text: str, size: int, wait_s: float) -> bool:
        """Stop watching and report why this rank fails, unless another did before. Further calls change nothing.

        Returns whether all `size` ranks have reported within `wait_s` seconds.
        """
        if self._all_ending is None:
            self.close()
            self._all_ending = self._report(text, size, wait_s)
        return self._all_ending

    def _report(self, text: str, size: int, wait_s: float) -> bool:
        try:
            self._write_failure(text, stack=False)
            self.store.add(ENDING, 1)
            until = time.monotonic() + wait_s
            while time.monotonic() < until:
                if self.store.add(ENDING, 0) >= size:
                    return True
                time.sleep(0.05)
        except RuntimeError:  # the store ended with the process that hosts it
            return False
        return False

    def close(self) -> None:
        """End the thread."""
        self._closed.set()

    def _run(self) -> None:
        """Look every POLL_S at this rank's wait and at the store, until closed."""
        failed_since: float | None = None
        while not self._closed.wait(POLL_S):
            wait = self._wait
            if wait and time.monotonic() - wait[1] > self.timeout_s:
                text = f"waited more than {self.timeout_s:g} s (run.timeout_s) for {wait[0]}"
                self._end(text, stack=True)
            try:
                failure = self._first_failure()
            except RuntimeError:  # the store ended with its process, which the next collective will notice
                return
            if failure is None:
                continue
            failed_since = failed_since or time.monotonic()
            if failure["stack"] or time.monotonic() - failed_since > MAIN_THREAD_S:
                self._end(_text(failure), stack=failure["stack"])

    def _first_failure(self) -> dict[str, Any] | None:
        return json.loads(self.store.get(FAILED)) if self.store.check([FAILED]) else None

    def _write_failure(self, text: str, stack: bool) -> None:
        """Write this rank's failure, if it is the first. `stack`: whether all ranks print their stacks."""
        self.store.compare_set(FAILED, "", json.dumps({"rank": self.rank, "text": text, "stack": stack}))

    def _end(self, text: str, stack: bool) -> None:
        """Print why, and where every thread is; end the process."""
        if self._closed.is_set():
            return
        with suppress(RuntimeError):
            self._write_failure(text, stack)
        print(f"rlhf-pg (rank {self.rank}): {text}", file=sys.stderr, flush=True)
        if stack:
            faulthandler.dump_traceback(sys.stderr, all_threads=True)
        sys.stderr.flush()
        os._exit(1)


def _text(failure: dict[str, Any]) -> str:
    return f"rank {failure['rank']} failed first: {failure['text']}"
