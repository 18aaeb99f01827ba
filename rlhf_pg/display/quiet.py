"""Keep the output of a command its own: what libraries print, log and warn of is shown only with `--debug`.

An error shows always, whoever logs it, and so does everything that comes from a file of the user's. What the compiled
parts of libraries print follows environment variables, which are set only where the user has not set them.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

QUIET = {
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TQDM_DISABLE": "1",  # the default of a bar: those of downloads, which may take minutes, say that they are shown
    "TOKENIZERS_PARALLELISM": "false",  # unset, a fork is warned of
}
DEBUG = {"VLLM_LOGGING_LEVEL": "INFO"}  # rollout/vllm_core.py would set it to ERROR
OWN = Path(__file__).parents[1]

log = logging.getLogger(__name__)


@contextmanager
def libraries(*, shown: bool) -> Iterator[None]:
    """Hide inside what libraries say below an error; `shown`: show all of it, from the level INFO on.

    What their compiled parts print is hidden only if they are imported inside. Python's own -W and PYTHONWARNINGS win.
    """
    settings = {name: value for name, value in (DEBUG if shown else QUIET).items() if name not in os.environ}
    os.environ.update(settings)
    try:
        if shown:
            logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
            yield
        else:
            with _own_logs(), _own_warnings(), _own_bars():
                yield
    finally:
        for name in settings:
            os.environ.pop(name, None)


@contextmanager
def _own_logs() -> Iterator[None]:
    """Show inside only records that are errors or do not come from libraries, whatever handlers these installed."""
    every = logging.Logger.callHandlers

    def own(self: logging.Logger, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR or _is_ours(record.name) or not _of_library(record.pathname):
            every(self, record)

    logging.Logger.callHandlers = own
    try:
        yield
    finally:
        logging.Logger.callHandlers = every


@contextmanager
def _own_warnings() -> Iterator[None]:
    """Show inside only warnings about files of the user's."""
    every = warnings.showwarning

    def own(message, category, filename, lineno, file=None, line=None) -> None:
        if sys.warnoptions or not _of_library(filename):
            every(message, category, filename, lineno, file, line)

    warnings.showwarning = own
    try:
        yield
    finally:
        warnings.showwarning = every


@contextmanager
def _own_bars() -> Iterator[None]:
    """Switch bars off inside where tqdm was imported before, and so has not seen TQDM_DISABLE."""
    bar: Any = getattr(sys.modules.get("tqdm.std"), "tqdm", None)
    if bar is None or os.environ.get("TQDM_DISABLE") != QUIET["TQDM_DISABLE"]:
        yield
        return
    every = bar.__init__

    def own(self, *arguments, **options) -> None:
        every(self, *arguments, **{"disable": True, **options})

    bar.__init__ = own
    try:
        yield
    finally:
        bar.__init__ = every


@contextmanager
def prints_logged() -> Iterator[None]:
    """Make log records of what a library prints to stdout inside: of the level INFO, or ERROR where it then raises."""
    printed, level = io.StringIO(), logging.ERROR
    try:
        with redirect_stdout(printed):
            yield
        level = logging.INFO
    finally:
        for line in filter(None, printed.getvalue().splitlines()):
            log.log(level, "%s", line)


def _is_ours(logger: str) -> bool:
    return logger.split(".")[0] == OWN.name


def _of_library(file: str) -> bool:
    """Return whether a file of Python code is an installed package's, Python's own or this package's."""
    path = Path(file)
    folders = (OWN, *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib")))
    installed = {"site-packages", "dist-packages"} & {*path.parts}
    return file.startswith("<") or bool(installed) or any(path.is_relative_to(folder) for folder in folders)
