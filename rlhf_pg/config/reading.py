"""Read YAML files, `base:` recipes and `key=value` overrides as one plain mapping, and write one back.

Scalars are YAML 1.2: `1e-4` is a number, `on`, `off`, `yes` and `no` are text, `010` is ten.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode
from ruamel.yaml.representer import SafeRepresenter

from rlhf_pg.config import places, reward_list
from rlhf_pg.errors import RecipeError

TEXT, MERGE, TIMESTAMP = (f"tag:yaml.org,2002:{kind}" for kind in ("str", "merge", "timestamp"))
NULL = ("", "~", "null", "Null", "NULL")
QUOTED = re.compile(r"""\s*('(?:[^']|'')*'|"(?:[^"\\]|\\.)*")\s*""", re.DOTALL)
BLOCK = re.compile(r"[|>][-+0-9]*\n.*", re.DOTALL)
BOOLEAN_ELSEWHERE = {"on", "off", "yes", "no", "y", "n"}  # text that readers of YAML 1.1 take for true or false


# of a key: text, text or a list of it, anything (text too), or one certain other type
Kind = Literal["text", "texts", "free", "typed"]


def read(
    path: Path, overrides: Sequence[str] = (), kind_of: Callable[[str], Kind] = lambda key: "free"
) -> dict[str, Any]:
    """Return the merged mapping of `path`, its `base` recipes and the overrides, not yet checked against a schema.

    `kind_of` a dotted key says how the value of an override is read.

    Raises RecipeError for a missing or unreadable file, broken YAML, a duplicate key, a cycle of bases, a bad override.
    """
    merged = _read_with_bases(path, ())
    problems = []
    for override in overrides:
        try:
            assign(merged, override, kind_of)
            merged = reward_list.in_sections(merged)
        except ValueError as error:
            problems.append(f"{override}: {error}")
    if problems:
        raise RecipeError("command line", problems)
    return merged


def write(mapping: Mapping[str, Any]) -> str:
    """Return YAML text that `read` turns back into the same mapping."""
    text = io.StringIO()
    _yaml().dump(dict(mapping), text)
    return text.getvalue()


def parse(text: str, source: str) -> Any:
    """Return YAML text as plain Python values. Raises RecipeError with `source`, line and column."""
    try:
        _check_keys(_yaml().compose(text))
        return _yaml().load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = str(error.problem or error.context).partition("\n")[0]
        problem += "; text that begins with * needs quotes" if "alias" in problem else ""
        raise RecipeError(source, [f"{where}{problem}"]) from error
    except YAMLError as error:
        raise RecipeError(source, [" ".join(str(error).split())]) from error


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two mappings deeply; anything else, lists too, is replaced."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def assign(tree: dict[str, Any], override: str, kind_of: Callable[[str], Kind]) -> None:
    """Apply one `a.b.0.c=value` to `tree` in place; the value replaces the one before."""
    path, equals, text = override.partition("=")
    parts = path.strip().split(".")
    if not equals or not all(parts):
        raise ValueError("an override is section.key=value")
    value = _value(text, kind_of(path.strip()))
    node: Any = tree
    for depth, part in enumerate(parts):
        key = _index(node, part, ".".join(parts[:depth]))
        if depth == len(parts) - 1:
            node[key] = value
            return
        if isinstance(node, dict) and node.get(key) is None:
            node[key] = {}
        node = node[key]


def _value(text: str, kind: Kind) -> Any:
    """Return the value of an override: YAML, but text that is not quoted stays as typed, where YAML would fold its
    newlines and cut it at a #. A key that takes only text takes so also what YAML reads as a list, a section or not
    at all, and one that also takes a list of text, what is no list; a number, true and false are left for its type to
    refuse.
    """
    as_in_a_file = QUOTED.fullmatch(text) or BLOCK.fullmatch(text)
    try:
        value = _unfolded(text) if as_in_a_file else parse(text, "value")
    except RecipeError as error:
        if kind in ("text", "texts"):
            return text
        raise ValueError(f"the value is not YAML ({error.problems[0]}); put text in quotes") from error
    if as_in_a_file or (isinstance(value, bool | int | float) and text == text.strip()):
        return value
    if kind == "text":
        return None if text in NULL else text
    return text if isinstance(value, str) and kind in ("free", "texts") else value


def _unfolded(text: str) -> Any:
    """Return the value of quoted or block text; newlines in quotes are kept, where YAML makes them spaces."""
    quoted = QUOTED.fullmatch(text)
    if quoted is None:
        return parse(text, "value")
    inner = quoted[1][1:-1]
    if quoted[1][0] == "'":
        return inner.replace("''", "'")
    return parse('"' + inner.replace("\r", "\\r").replace("\n", "\\n") + '"', "value")


def _index(node: Any, part: str, above: str) -> str | int:
    if isinstance(node, dict):
        return part
    if not isinstance(node, list):
        raise ValueError(f"{above} is {node!r}, which has no keys")
    if not part.isdecimal() or int(part) >= len(node):
        raise ValueError(f"{above} is a list of {len(node)}: use an index from 0 to {len(node) - 1}, not {part!r}")
    return int(part)


def _read_with_bases(path: Path, chain: tuple[Path, ...]) -> dict[str, Any]:
    resolved = path.expanduser().resolve()
    if resolved in chain:
        raise RecipeError(str(path), ["base: recipes build on each other in a circle: " + _arrows((*chain, resolved))])
    mapping = _read_one(path.expanduser())
    base = mapping.pop("base", None)
    if base is None:
        return mapping
    if not isinstance(base, str):
        raise RecipeError(str(path), [f"base: must be the path of one recipe, is {base!r}"])
    return merge(_read_with_bases(places.base_of(path.expanduser(), base), (*chain, resolved)), mapping)


def _arrows(chain: Sequence[Path]) -> str:
    return " -> ".join(p.name for p in chain)


def _read_one(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise places.missing(path) from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(str(path), [f"cannot be read: {error}"]) from error
    mapping = parse(text, str(path))
    if mapping is None:
        raise RecipeError(str(path), ["the file is empty"])
    if not isinstance(mapping, dict):
        raise RecipeError(str(path), [f"a recipe is a mapping of sections, this file holds a {type(mapping).__name__}"])
    mapping = reward_list.in_sections(mapping)
    return mapping if places.is_record(path) else places.anchored(mapping, path.parent)


def _check_keys(node: Node | None) -> None:
    """Raise MarkedYAMLError for a key that is not text, or that one mapping has twice."""
    if isinstance(node, SequenceNode):
        for item in node.value:
            _check_keys(item)
    if not isinstance(node, MappingNode):
        return
    lines: dict[str, int] = {}
    for key, value in node.value:
        _check_keys(value)
        if key.tag == MERGE:
            continue
        if key.tag != TEXT:
            raise MarkedYAMLError(problem=f"key {key.value!r} is not text", problem_mark=key.start_mark)
        if key.value in lines:
            problem = f"key {key.value!r} is given twice, first on line {lines[key.value]}"
            raise MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
        lines[key.value] = key.start_mark.line + 1


class _Constructor(SafeConstructor):
    """Leaves dates as the text they are written in."""


class _Representer(SafeRepresenter):
    """Writes what readers of YAML 1.1 read the same, and repeats what YAML would give an alias."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, data: str) -> Any:
        return self.represent_scalar(TEXT, data, style="'" if data.lower() in BOOLEAN_ELSEWHERE else None)

    def represent_number(self, data: float) -> Any:
        node = self.represent_float(data)
        if "e" in node.value and "." not in node.value:  # 1e-06 is text in YAML 1.1
            node.value = node.value.replace("e", ".0e")
        return node


_Constructor.add_constructor(TIMESTAMP, lambda _, node: node.value)
_Representer.add_representer(str, _Representer.represent_text)
_Representer.add_representer(float, _Representer.represent_number)


def _yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor, yaml.Representer = _Constructor, _Representer
    yaml.default_flow_style, yaml.width, yaml.allow_unicode = False, 120, True
    yaml.sort_base_mapping_type_on_output = False  # pyright: ignore[reportAttributeAccessIssue]
    return yaml
