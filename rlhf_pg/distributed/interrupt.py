"""SIGTERM and Ctrl-C as a request to stop: the loop ends at the next safe point, where it can save."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)


class Stopped(BaseException):
    """A request to stop. Like KeyboardInterrupt not an Exception: what catches plugin errors must not catch it."""


class StopRequest:
    """While entered, SIGTERM and SIGINT only set a flag; a second SIGINT raises KeyboardInterrupt.

        with StopRequest() as stop:
            for step in steps:
                stop.raise_if_requested()   # also between decode steps and micro-batches: cheap

    Only the main thread can set signal handlers: entered in another, this sets none and logs that; `request` still
    works. Leaving puts the earlier handlers back.
    """

    def __init__(self) -> None:
        self.reason = ""  # "": not requested
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
        """Ask to stop from code, as a signal would."""
        self.reason = reason

    def raise_if_requested(self) -> None:
        """Raise Stopped, naming the signal, if a stop was requested."""
        if self.reason:
            raise Stopped(self.reason)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._interrupted:
            raise KeyboardInterrupt
        self._interrupted |= number == signal.SIGINT
        self.reason = signal.Signals(number).name
