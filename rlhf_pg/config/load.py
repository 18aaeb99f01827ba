"""Read, check and write recipes without torch: a wrong key fails in a second, before any model loads.

A recipe is YAML. `base: other.yaml` starts from another recipe; `section.key=value` on the command line overrides;
a key set to null is as if it had not been given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any, TypeVar, overload

from pydantic import ValidationError

from rlhf_pg.config import contradictions, messages, reading, unused_keys
from rlhf_pg.config.recipe import Recipe, SftRecipe
from rlhf_pg.errors import RecipeError

S = TypeVar("S", bound=Recipe | SftRecipe)


@overload
def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe: ...
@overload
def load(path: str | Path, overrides: Sequence[str], schema: type[S]) -> S: ...
def load(path: str | Path, overrides: Sequence[str] = (), schema: type[Recipe] | type[SftRecipe] = Recipe):
    """Read, merge, override and check a recipe: YAML file `path`, then each "section.key=value".

    Paths inside a recipe are relative to the current directory, except `base`, which is relative to its file.
    Raises RecipeError listing every problem found, one line each.
    """
    return parse(reading.read(Path(path), overrides), schema, str(path))


def parse(mapping: Mapping[str, Any], schema: type[S], source: str = "recipe") -> S:
    """A checked recipe from plain values. Raises RecipeError, its first line opening with `source`."""
    try:
        recipe = schema.model_validate(mapping)
    except ValidationError as error:
        raise RecipeError(source, messages.explain(error, schema)) from None
    problems = contradictions.problems(recipe)
    if problems:
        raise RecipeError(source, problems)
    return contradictions.with_options_filled(recipe) if isinstance(recipe, Recipe) else recipe


def dump(recipe: Recipe | SftRecipe) -> str:
    """The resolved recipe as YAML: every key but those without effect. Loads back to an equal one."""
    mapping = recipe.model_dump(mode="json")
    for key, _ in unused_keys.without_effect(recipe):
        *above, leaf = key.split(".")
        del reduce(getitem, above, mapping)[leaf]
        while above and not reduce(getitem, above, mapping):
            *above, leaf = above
            del reduce(getitem, above, mapping)[leaf]
    return reading.write(mapping)
