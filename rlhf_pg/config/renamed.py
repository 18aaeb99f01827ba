"""Recipe keys that had other names: an error in a recipe, translated in the config.yaml of an older run."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

RENAMED = {  # old -> new
    "run.deadline_s": "run.timeout_s",
    "update.importance_cap": "update.mismatch.cap",
    "update.importance": "update.mismatch.beyond",
}


def problems(mapping: Mapping[str, Any]) -> list[str]:
    """Say, a line each, which keys go by another name now."""
    return [f"{old}: is now {new}" for old, new in RENAMED.items() if _value(mapping, old) is not None]


def translate(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same values under the names of today."""
    translated = copy.deepcopy(dict(mapping))
    for old, new in RENAMED.items():
        value = _value(translated, old)
        if value is not None:
            del _section(translated, old)[old.rpartition(".")[2]]
            _section(translated, new)[new.rpartition(".")[2]] = value
    return translated


def _value(mapping: Mapping[str, Any], key: str) -> Any:
    value: Any = mapping
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _section(mapping: dict[str, Any], key: str) -> dict[str, Any]:
    """Return the section a key is in, made if it is not there."""
    section = mapping
    for name in key.split(".")[:-1]:
        if not isinstance(section.get(name), dict):
            section[name] = {}
        section = section[name]
    return section
