"""How a data value reaches a worker process: as JSON, where dates, decimals, bytes and the like keep their type.

No pickle: what arrives is built by the constructors named here, and nothing else. NumPy scalars and arrays arrive as
numbers and lists, tuples as lists.
"""

from __future__ import annotations

import datetime
import decimal
import pathlib
import uuid
from collections.abc import Callable, Mapping
from typing import Any

TAG = "rlhf_pg.value"  # {TAG: [name of the type, text]}
KINDS: dict[str, tuple[type, Callable[[Any], str], Callable[[str], Any]]] = {  # the first that fits
    "datetime": (datetime.datetime, datetime.datetime.isoformat, datetime.datetime.fromisoformat),
    "date": (datetime.date, datetime.date.isoformat, datetime.date.fromisoformat),
    "time": (datetime.time, datetime.time.isoformat, datetime.time.fromisoformat),
    "timedelta": (
        datetime.timedelta,
        lambda v: f"{v.days} {v.seconds} {v.microseconds}",
        lambda text: datetime.timedelta(*map(int, text.split())),
    ),
    "Decimal": (decimal.Decimal, str, decimal.Decimal),
    "UUID": (uuid.UUID, str, uuid.UUID),
    "Path": (pathlib.PurePath, str, pathlib.Path),
    "bytes": (bytes, bytes.hex, bytes.fromhex),
    "bytearray": (bytearray, bytearray.hex, bytearray.fromhex),
}


def to_json(value: Any) -> Any:
    """Return a value as JSON. Raises TypeError naming the type of what cannot travel."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [to_json(v) for v in value]
    if isinstance(value, Mapping):
        return _mapping(value)
    for name, (kind, to_text, from_text) in KINDS.items():
        if isinstance(value, kind):
            text = to_text(value)
            try:
                from_text(text)
            except (ValueError, ArithmeticError) as error:  # as pandas' NaT, a datetime without a date
                raise TypeError(f"a {_type_name(value)} that is {value!r}") from error
            return {TAG: [name, text]}
    if type(value).__module__.partition(".")[0] == "numpy" and hasattr(value, "tolist"):
        return to_json(_listed(value))
    raise TypeError(f"a {_type_name(value)}")


def from_json(item: dict[str, Any]) -> Any:
    """Return what a JSON object stands for: the `object_hook` of `json.loads`."""
    if item.keys() != {TAG}:
        return item
    name, text = item[TAG]
    return KINDS[name][2](text)


def _mapping(value: Mapping[Any, Any]) -> dict[str, Any]:
    for key in value:
        if not isinstance(key, str):
            raise TypeError(f"a dict with the key {key!r}, a {_type_name(key)}; only text may be a key")
    if value.keys() == {TAG}:
        raise TypeError(f"a dict whose only key is {TAG!r}, which has another meaning here")
    return {k: to_json(v) for k, v in value.items()}


def _listed(value: Any) -> Any:
    """Return a NumPy value as plain Python; dates as `datetime`, where NumPy's nanoseconds would become an int."""
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    plain = value.astype(f"{kind}8[us]").tolist() if kind and kind in "Mm" else value.tolist()
    if type(plain) is type(value):
        raise TypeError(f"a {_type_name(value)}")
    return plain


def _type_name(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
