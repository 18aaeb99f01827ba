"""YAML files, `base:` recipes and `key=value` overrides become one plain mapping; and back.

Scalars follow YAML 1.2 where 1.1 surprises: `1e-4` is a number, `on`, `off`, `yes` and `no` are text, `010` is ten.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rlhf_pg.errors import RecipeError

INT, FLOAT, BOOL = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float", "tag:yaml.org,2002:bool"
NULL, MERGE = "tag:yaml.org,2002:null", "tag:yaml.org,2002:merge"
KEPT = (NULL, MERGE)
SCALARS = {
    INT: re.compile(r"^[-+]?[0-9][0-9_]*$"),
    FLOAT: re.compile(
        r"^(?:[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    BOOL: re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"),
}


def read(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The merged mapping of `path`, its `base` recipes and the overrides, not yet checked against a schema.

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
    """YAML text that `read` turns back into the same mapping."""
    return yaml.dump(dict(mapping), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def parse(text: str, source: str) -> Any:
    """YAML text to plain Python values. Raises RecipeError with `source`, line and column."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise RecipeError(source, [f"{where}{error.problem or error.context}"]) from error
    except yaml.YAMLError as error:
        raise RecipeError(source, [" ".join(str(error).split())]) from error


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Maps merge deeply; anything else, lists too, is replaced."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def assign(tree: dict[str, Any], override: str) -> None:
    """Apply one `a.b.0.c=value` to `tree` in place; the value is YAML and replaces what was there."""
    path, equals, text = override.partition("=")
    parts = path.strip().split(".")
    if not equals or not all(parts):
        raise ValueError("an override is section.key=value")
    try:
        value = parse(text, override)
    except RecipeError as error:
        raise ValueError(f"the value is not YAML ({error.problems[0]}); put text in quotes") from error
    here: Any = tree
    for depth, part in enumerate(parts):
        key = _index(here, part, ".".join(parts[:depth]))
        if depth == len(parts) - 1:
            here[key] = value
            return
        if isinstance(here, dict) and here.get(key) is None:
            here[key] = {}
        here = here[key]


def _index(here: Any, part: str, above: str) -> str | int:
    if isinstance(here, dict):
        return part
    if not isinstance(here, list):
        raise ValueError(f"{above} is {here!r}, which has no keys")
    if not part.isdecimal() or int(part) >= len(here):
        raise ValueError(f"{above} is a list of {len(here)}: use an index from 0 to {len(here) - 1}, not {part!r}")
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


def _integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node).replace("_", ""))


def _float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    text = loader.construct_scalar(node).lower().replace("_", "")
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


def _resolvers(start: Mapping[str, list]) -> dict[str, list]:
    """PyYAML's table: first character -> [(tag, pattern)], with the scalars of this file added to `start`."""
    table = {character: list(pairs) for character, pairs in start.items()}
    for tag, pattern in SCALARS.items():
        for character in "tTfF" if tag.endswith("bool") else "-+.0123456789":
            table.setdefault(character, []).append((tag, pattern))
    return table


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars above; a key given twice in one mapping is an error."""

    yaml_implicit_resolvers = _resolvers(
        {c: [pair for pair in pairs if pair[0] in KEPT] for c, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()}
    )
    yaml_constructors = {**yaml.SafeLoader.yaml_constructors, INT: _integer, FLOAT: _float}  # noqa: RUF012

    def construct_mapping(self, node, deep=False):
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if key.tag == MERGE:
                continue
            if key.tag != "tag:yaml.org,2002:str":
                raise yaml.MarkedYAMLError(problem=f"key {key.value!r} is not text", problem_mark=key.start_mark)
            if key.value in lines:
                problem = f"key {key.value!r} is given twice, first on line {lines[key.value]}"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            lines[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes text which either YAML 1.1 or `_Loader` would read as something else."""

    yaml_implicit_resolvers = _resolvers(yaml.SafeDumper.yaml_implicit_resolvers)

    def ignore_aliases(self, data):
        return True
