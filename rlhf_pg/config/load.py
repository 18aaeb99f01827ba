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

from pydantic import BaseModel, ValidationError

from rlhf_pg.config import contradictions, messages, places, reading, renamed, unused_keys
from rlhf_pg.config.inheritance import with_inherited
from rlhf_pg.config.launch import Launch
from rlhf_pg.config.recipe import Recipe, SftRecipe
from rlhf_pg.config.resolved import ResolvedRecipe
from rlhf_pg.errors import RecipeError

S = TypeVar("S", bound=BaseModel)


@overload
def load(path: str | Path, overrides: Sequence[str] = (), *, makes_model: bool = False) -> ResolvedRecipe: ...
@overload
def load(
    path: str | Path, overrides: Sequence[str], schema: type[Recipe], *, makes_model: bool = False
) -> ResolvedRecipe: ...
@overload
def load(
    path: str | Path, overrides: Sequence[str], schema: type[SftRecipe], *, makes_model: bool = False
) -> SftRecipe: ...
def load(
    path: str | Path,
    overrides: Sequence[str] = (),
    schema: type[Recipe] | type[SftRecipe] = Recipe,
    *,
    makes_model: bool = False,
):
    """Read a recipe file, apply each "section.key=value", check all of it and resolve it.

    `path` may be the name of a shipped recipe. Files that a recipe names are looked for beside it first, then in the
    current folder; those of overrides in the current folder. `makes_model`: the command runs `run.cold_start` first, so
    `model.path` need not be there yet.
    Raises RecipeError listing every problem found, one line each.
    """
    mapping = reading.read(places.find(path), overrides, lambda key: messages.kind(key, schema))
    return parse(mapping, schema, str(path), makes_model=makes_model)


def load_saved(path: Path, schema: type[Recipe] | type[SftRecipe]) -> Recipe | SftRecipe:
    """Read the sections of the config.yaml of a run, also of one that was written when keys had other names."""
    mapping = renamed.translate(reading.read(path))
    return with_inherited(_validated(mapping, schema, str(path)))


@overload
def parse(
    mapping: Mapping[str, Any],
    schema: type[Recipe] = Recipe,
    source: str = "recipe",
    launch: Launch | None = None,
    *,
    makes_model: bool = False,
) -> ResolvedRecipe: ...
@overload
def parse(
    mapping: Mapping[str, Any],
    schema: type[SftRecipe],
    source: str = "recipe",
    launch: Launch | None = None,
    *,
    makes_model: bool = False,
) -> SftRecipe: ...
def parse(
    mapping: Mapping[str, Any],
    schema: type[Recipe] | type[SftRecipe] = Recipe,
    source: str = "recipe",
    launch: Launch | None = None,
    *,
    makes_model: bool = False,
) -> ResolvedRecipe | SftRecipe:
    """Check and resolve plain values for `launch` (default: that of this process).

    Raises RecipeError, its first line opening with `source`.
    """
    recipe = with_inherited(_validated(mapping, schema, source))
    problems = list(contradictions.of_places(recipe, makes_model))
    if isinstance(recipe, SftRecipe):
        problems += unused_keys.written_without_effect(recipe, None)
        if problems:
            raise RecipeError(source, problems)
        return recipe
    algorithm, algorithm_problems = contradictions.bind_algorithm(recipe.algorithm)
    problems += unused_keys.written_without_effect(recipe, algorithm)
    problems += algorithm_problems
    problems += contradictions.of_recipe(recipe, algorithm)
    launch = launch or Launch.from_environment()
    if algorithm:
        problems += contradictions.of_launch(recipe, algorithm, launch)
    if problems or algorithm is None:
        raise RecipeError(source, problems)
    return ResolvedRecipe.of(recipe, algorithm, launch)


def dump(recipe: ResolvedRecipe | SftRecipe) -> str:
    """Return a recipe as YAML: every key but those without effect. Loads back to an equal one."""
    if isinstance(recipe, ResolvedRecipe):
        sections: Recipe | SftRecipe = recipe.written
        idle_keys = unused_keys.without_effect(recipe.written, recipe.algorithm)
    else:
        sections, idle_keys = recipe, unused_keys.without_effect(recipe, None)
    mapping = sections.model_dump(mode="json")
    for key, _ in idle_keys:
        *above, leaf = key.split(".")
        del reduce(getitem, above, mapping)[leaf]
        while above and not reduce(getitem, above, mapping):
            *above, leaf = above
            del reduce(getitem, above, mapping)[leaf]
    return reading.write(mapping)


def _validated(mapping: Mapping[str, Any], schema: type[S], source: str) -> S:
    """Return the sections of plain values. Raises RecipeError for keys that are unknown, renamed or out of range."""
    old_names = renamed.problems(mapping)
    if old_names:
        raise RecipeError(source, old_names)
    try:
        return schema.model_validate(mapping)
    except ValidationError as error:
        raise RecipeError(source, messages.explain(error, schema)) from None
