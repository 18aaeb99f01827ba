"""Sections that take from another one what they do not say: data.eval from data.train, critic.optimizer from optimizer.

An inherited key does not count as written: it is no error where it has no effect.
"""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel

from rlhf_pg.config.recipe import DataSource, Recipe, SftRecipe, is_generated

INHERITING = {"data.eval": "data.train", "critic.optimizer": "optimizer"}  # section -> the one it takes from
# keys that say how rows are read, wherever they come from
COLUMNS = ("prompt", "answer", "template", "instruction", "template_options")
OWN_RATE = ("lr",)  # of a critic: values are learned faster than a policy

R = TypeVar("R", Recipe, SftRecipe, Recipe | SftRecipe)
S = TypeVar("S", bound=BaseModel)


def with_inherited(recipe: R) -> R:
    """Return the recipe with inherited values filled in."""
    if recipe.data.eval is not None:
        held_out = _filled(recipe.data.eval, _held_out_source(recipe.data.train, recipe.data.eval))
        recipe = recipe.model_copy(update={"data": _filled(recipe.data, {"eval": held_out})})
    if isinstance(recipe, Recipe) and recipe.critic.optimizer != recipe.optimizer:
        written = recipe.critic.optimizer.model_fields_set
        fields = type(recipe.optimizer).model_fields
        inherited = {k: getattr(recipe.optimizer, k) for k in fields if k not in written and k not in OWN_RATE}
        optimizer = _filled(recipe.critic.optimizer, inherited)
        recipe = recipe.model_copy(update={"critic": _filled(recipe.critic, {"optimizer": optimizer})})
    return recipe


def _held_out_source(train: DataSource, held_out: DataSource) -> dict[str, Any]:
    """Return what data.eval takes from data.train. Never the file, split or limit: those are the rows learned from.

    Another task than data.train's shares nothing with it.
    """
    if held_out.task not in (None, train.task):
        return {}
    inherited = {"task": train.task, **{key: getattr(train, key) for key in COLUMNS}}
    if held_out.template not in (None, train.template):
        del inherited["instruction"], inherited["template_options"]  # those of another template
    if held_out.path is None:
        for key in ("dataset", "subset"):
            if held_out.dataset in (None, train.dataset):
                inherited[key] = getattr(train, key)
        if held_out.dataset is None and train.dataset is None and is_generated(train.task):
            inherited["options"] = {**train.options, **held_out.options}
    return {k: v for k, v in inherited.items() if k == "options" or k not in held_out.model_fields_set}


def _filled(section: S, values: dict[str, Any]) -> S:
    """Return a section with other values, whose keys count as written only if they did before."""
    copied = section.model_copy(update=values)
    copied.model_fields_set.intersection_update(section.model_fields_set)
    return copied
