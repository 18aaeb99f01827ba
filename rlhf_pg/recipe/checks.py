"""Keys against each other: contradictions, and keys that would do nothing. Imports no torch.

A key counts as given when the recipe names it, even with its default value.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeGuard

from pydantic import ValidationError

from rlhf_pg.algorithms.base import resolve
from rlhf_pg.recipe import messages

if TYPE_CHECKING:
    from rlhf_pg.config import Recipe, SftRecipe


def problems(recipe: Recipe | SftRecipe) -> list[str]:
    """One line per contradiction or given key without effect."""
    return list(_algorithm(recipe)) if is_training(recipe) else []


def is_training(recipe: Recipe | SftRecipe) -> TypeGuard[Recipe]:
    return "algorithm" in type(recipe).model_fields


def without_effect(recipe: Recipe | SftRecipe) -> list[str]:
    return []


def with_options_filled(recipe: Recipe) -> Recipe:
    """The recipe with every option of its algorithm written out, so that a saved recipe says what ran."""
    schema = resolve(recipe.algorithm.name).options
    options = schema.model_validate(recipe.algorithm.options).model_dump(mode="json")
    return recipe.model_copy(update={"algorithm": recipe.algorithm.model_copy(update={"options": options})})


def _algorithm(recipe: Recipe) -> Iterator[str]:
    try:
        algorithm = resolve(recipe.algorithm.name)
    except ValueError as error:
        yield f"algorithm.name: {error}"
        return
    try:
        algorithm.options.model_validate(recipe.algorithm.options)
    except ValidationError as error:
        yield from messages.explain(error, algorithm.options, "algorithm.options.")
    samples = recipe.rollout.samples_per_prompt
    if samples < algorithm.min_group:
        yield (
            f"rollout.samples_per_prompt: must be at least {algorithm.min_group}, is {samples}: "
            f"{algorithm.name.upper()} compares the samples of one prompt"
        )
