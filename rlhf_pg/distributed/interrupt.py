"""SIGTERM and Ctrl-C as a request: the loop leaves at the next safe point, where it can save."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)


class Stopped(BaseException):
    """Asked to stop. Not an Exception, like KeyboardInterrupt: code that survives plugin errors must not survive it."""


class StopRequest:
    """While entered, SIGTERM and SIGINT only set a flag; a second SIGINT raises KeyboardInterrupt.

        with StopRequest() as stop:
            for step in steps:
                stop.raise_if_requested()   # also between decode steps and micro-batches: cheap

    Signal handlers exist only in the main thread: entered elsewhere it installs nothing, says so in the log, and
    `request` still works. Handlers of before are put back on leaving.
    """

    def __init__(self) -> None:
        self.reason = ""  # "" = nobody asked
        self._interrupted = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is not threading.main_thread():
            log.info("not in the main thread: SIGTERM and SIGINT keep their handlers")
            return self
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: was not set from Python
        self._previous = {}

    @property
    def requested(self) -> bool:
        return bool(self.reason)

    def request(self, reason: str) -> None:
        """Ask from code, as a signal would."""
        self.reason = reason

    def raise_if_requested(self) -> None:
        """Raises Stopped, naming the signal, once somebody asked."""
        if self.reason:
            raise Stopped(self.reason)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._interrupted:
            raise KeyboardInterrupt
        self._interrupted |= number == signal.SIGINT
        self.reason = signal.Signals(number).name
