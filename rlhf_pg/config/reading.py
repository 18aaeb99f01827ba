"""Read YAML files, `base:` recipes and `key=value` overrides as one plain mapping, and write one back.

Scalars are YAML 1.2: `1e-4` is a number, `on`, `off`, `yes` and `no` are text, `010` is ten.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode
from ruamel.yaml.representer import SafeRepresenter

from rlhf_pg.errors import RecipeError

TEXT, MERGE, TIMESTAMP = (f"tag:yaml.org,2002:{kind}" for kind in ("str", "merge", "timestamp"))
BOOLEAN_ELSEWHERE = {"on", "off", "yes", "no", "y", "n"}  # text that readers of YAML 1.1 take for true or false


def read(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return the merged mapping of `path`, its `base` recipes and the overrides, not yet checked against a schema.

    Raises RecipeError for a missing or unreadable file, broken YAML, a duplicate key, a cycle of bases, a bad override.
    """
    merged = _read_with_bases(path, ())
    problems = []
    for override in overrides:
        try:
            assign(merged, override)
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


def assign(tree: dict[str, Any], override: str) -> None:
    """Apply one `a.b.0.c=value` to `tree` in place; the value is YAML and replaces the one before."""
    path, equals, text = override.partition("=")
    parts = path.strip().split(".")
    if not equals or not all(parts):
        raise ValueError("an override is section.key=value")
    try:
        value = parse(text, override)
    except RecipeError as error:
        raise ValueError(f"the value is not YAML ({error.problems[0]}); put text in quotes") from error
    node: Any = tree
    for depth, part in enumerate(parts):
        key = _index(node, part, ".".join(parts[:depth]))
        if depth == len(parts) - 1:
            node[key] = value
            return
        if isinstance(node, dict) and node.get(key) is None:
            node[key] = {}
        node = node[key]


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
    base_path = path.expanduser().parent / Path(base).expanduser()
    if not base_path.is_file():
        raise RecipeError(str(path), [f"base: no file {base_path}"])
    return merge(_read_with_bases(base_path, (*chain, resolved)), mapping)


def _arrows(chain: Sequence[Path]) -> str:
    return " -> ".join(p.name for p in chain)


def _read_one(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise RecipeError(str(path), ["no such recipe file"]) from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(str(path), [f"cannot be read: {error}"]) from error
    mapping = parse(text, str(path))
    if mapping is None:
        raise RecipeError(str(path), ["the file is empty"])
    if not isinstance(mapping, dict):
        raise RecipeError(str(path), [f"a recipe is a mapping of sections, this file holds a {type(mapping).__name__}"])
    return mapping


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
