"""What pydantic found wrong, in one line each: the full dotted key, what is wrong, what would be right."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from rlhf_pg.config import foreign
from rlhf_pg.names import nearest

EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text (in quotes)",
    "path": "a path",
    "list": "a list",
    "tuple": "a list",
    "dict": "a section of keys",
    "model": "a section of keys",
}
WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    Path: "a path",
    dict: "a section",
}
BOUNDS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


@dataclass(frozen=True)
class Key:
    """One leaf of a schema: `optimizer.lr`, `rewards.N.weight`."""

    name: str
    field: FieldInfo

    @property
    def leaf(self) -> str:
        return self.name.rpartition(".")[2]


def keys(schema: type[BaseModel], prefix: str = "") -> Iterator[Key]:
    """Yield every leaf key of a schema, depth first, in the order of the file."""
    for name, field in schema.model_fields.items():
        section = section_of(field.annotation)
        if section is None:
            yield Key(prefix + name, field)
        else:
            index = ".N" if _is_list(field.annotation) else ""
            yield from keys(section, f"{prefix}{name}{index}.")


def kind(key: str, schema: type[BaseModel]) -> Literal["text", "texts", "free", "typed"]:
    """Say what a dotted key takes: only text (paths too), text or a list of it, anything, or one certain other type."""
    name = ".".join("N" if part.isdecimal() else part for part in key.split("."))
    annotation = next((leaf.field.annotation for leaf in keys(schema) if leaf.name == name), Any)
    accepted = _plain_types(annotation)
    if accepted <= {str, Path}:
        return "text"
    if accepted <= {str, Path, list}:
        return "texts" if accepted & {str, Path} else "typed"
    return "free" if accepted & {Any, str} else "typed"


def _plain_types(annotation: Any) -> set[Any]:
    """Return what a value may be, None left out: `Annotated[str, ...] | None` -> {str}."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _plain_types(parts[0])
    if origin in (Union, types.UnionType):
        return set[Any]().union(*(_plain_types(part) for part in parts if part is not type(None)))
    return {origin or annotation}


def explain(error: ValidationError, schema: type[BaseModel], prefix: str = "") -> list[str]:
    """Say each problem in a line, in pydantic's order; `prefix` ("algorithm.options.") opens each key."""
    lines = []
    for item in error.errors(include_url=False):
        key, union = _locate(item["loc"], schema)
        if item["type"] == "extra_forbidden":
            here = foreign.key_for(str(item["loc"][-1]), item["input"])
            text = "unknown key" + (f"; here it is {here}" if here else _nearest_key(item["loc"], schema, prefix))
        elif union is not None:  # all that its branches agree on is that none of them fits
            text = f"must be {words(union)}"
        else:
            text = _text(item)
        lines.append(f"{prefix}{key}: {text}" if key else text)
    return list(dict.fromkeys(lines))


def words(annotation: Any) -> str:
    """Say a type for people: list[str] -> "a list of text"."""
    origin, parts = get_origin(annotation), [part for part in get_args(annotation) if part is not type(None)]
    if origin is Annotated:
        return words(parts[0])
    if origin is Literal:
        return " or ".join(str(part) for part in parts)
    if origin in (Union, types.UnionType):
        return " or ".join(words(part) for part in parts)
    if origin is list:
        each = words(parts[0])
        return f"a list of {each.removeprefix('a ') + 's' if each.startswith('a ') else each}"
    if origin is tuple:
        return f"[{', '.join(words(part) for part in parts)}]"
    return WORDS.get(origin or annotation, "a section")


def section_of(annotation: Any) -> type[BaseModel] | None:
    """Return the section class behind `X`, `X | None` or `list[X]`, or None for a leaf."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType, list):
        return next(filter(None, map(section_of, get_args(annotation))), None)
    return None


def _is_list(annotation: Any) -> bool:
    return get_origin(annotation) in (list, tuple)


def _locate(loc: tuple[int | str, ...], schema: type[BaseModel]) -> tuple[str, Any]:
    """Return the key a pydantic location points at, and the union it ends inside of, if its rest names a branch."""
    key: list[str] = []
    section, annotation = schema, None
    for part in loc:
        if isinstance(part, str) and section is None:
            return ".".join(key), annotation
        key.append(str(part))
        if isinstance(part, str) and section is not None:
            field = section.model_fields.get(part)
            annotation = field.annotation if field else None
            section = section_of(annotation)
    return ".".join(key), None


def _section_at(loc: tuple[int | str, ...], schema: type[BaseModel]) -> type[BaseModel]:
    section = schema
    for part in loc:
        if isinstance(part, str):
            section = section_of(section.model_fields[part].annotation) or section
    return section


def _nearest_key(loc: tuple[int | str, ...], schema: type[BaseModel], prefix: str) -> str:
    *above, name = loc
    section = prefix + "".join(f"{part}." for part in above)
    siblings = list(_section_at(tuple(above), schema).model_fields)
    closest = difflib.get_close_matches(str(name), siblings, n=1)
    if closest:
        return f"; did you mean {section}{closest[0]}?"
    elsewhere = [key.name for key in keys(schema) if key.leaf == name and prefix + key.name != section + str(name)]
    if elsewhere:
        return f"; did you mean {' or '.join(elsewhere[:3])}?"
    return f"; the keys here are {', '.join(siblings)}"


def _text(item: Any) -> str:
    kind, value, context = item["type"], _shown(item["input"]), item.get("ctx", {})
    if kind == "missing":
        return "required, but not given"
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", context["expected"])
        return f"must be {context['expected']}, is {value}{nearest(item['input'], choices)}"
    if kind == "finite_number":
        return f"must be a finite number, is {value}"
    if kind in BOUNDS:
        name, words = BOUNDS[kind]
        return f"must be {words} {context[name]:g}, is {value}"
    if kind == "too_short":
        return f"must have at least {context['min_length']} item, has {context['actual_length']}"
    if kind == "too_long":
        return f"must have at most {context['max_length']} items, has {context['actual_length']}"
    if kind == "value_error":
        return str(context["error"])
    expected = EXPECTED.get(kind.partition("_")[0])
    return f"must be {expected}, is {value}" if expected else f"{item['msg']}, is {value}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
