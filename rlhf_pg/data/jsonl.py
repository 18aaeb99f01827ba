"""JSON as the standard has it, by the line or by the file: what Python's reader lets pass is refused with its place."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


def read_jsonl(lines: Iterable[bytes], path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) of each line of `path`, an opened file, that is not blank.

    Raises ValueError naming file and line for what is not JSON, a key that appears twice, NaN, or a line that is no
    object.
    """
    for number, line in enumerate(lines, start=1):  # split at newlines only: text may hold other line separators
        if line.strip():
            where = f"{path}:{number}"
            yield number, as_object(parse(line, where), where)


def parse(raw: bytes, where: str) -> Any:
    """Return the value of JSON text in UTF-8. Raises ValueError beginning with `where`."""
    try:
        return json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # bad JSON, bad UTF-8, a number of 5,000 digits, nesting
        raise ValueError(f"{where}: not valid JSON ({error})") from error


def as_object(value: Any, where: str) -> dict[str, Any]:
    """Return the value if it is a JSON object. Raises ValueError beginning with `where`."""
    if not isinstance(value, dict):
        raise ValueError(f'{where}: every row must be an object like {{"question": ...}}, this is {str(value)[:40]!r}')
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    repeated = [key for key in dict.fromkeys(keys) if keys.count(key) > 1]
    if repeated:
        raise ValueError(f"key {repeated[0]!r} appears twice")
    return dict(pairs)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON; use null")
