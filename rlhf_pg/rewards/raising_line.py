"""The line of a reward's source at which an exception was raised, for people who wrote it. Imports no torch."""

from __future__ import annotations

import linecache
import os
import sysconfig
import traceback
from pathlib import Path

SHOWN = 120  # characters of the line
LIBRARIES = tuple({*sysconfig.get_paths().values(), str(Path(__file__).parent)})  # not where a reward's author looks


def raising_line(error: BaseException, module_file: str | None) -> str:
    """Return "rewards.py:7, `return 1 / level`: " for the innermost line of an exception that the author of the module
    at `module_file` can mend, one of its folder if there is one; "" if there is none.
    """
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    folder = os.path.dirname(os.path.abspath(module_file)) if module_file else ""
    own = [frame for frame in frames if os.path.dirname(os.path.abspath(frame[0])) == folder]
    lines = own or [f for f in frames if os.path.isfile(f[0]) and not f[0].startswith(LIBRARIES)]
    if not lines:
        return ""
    file, number = lines[-1]
    source = linecache.getline(file, number).strip()
    source = source if len(source) <= SHOWN else f"{source[:SHOWN]}..."
    return f"{_from_here(file)}:{number}, `{source}`: "


def _from_here(file: str) -> str:
    """Return a path as seen from the current folder, if it is in there."""
    path, here = Path(os.path.abspath(file)), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
