"""Recipes in files, for the tests beside this file."""

from pathlib import Path

import pytest

from rlhf_pg import config

MINIMAL = """
run: {dir: runs/x}
model: {path: tiny}
data: {train: {task: arithmetic}}
rewards: [{fn: gsm8k}]
"""
SFT = "run: {dir: r}\nmodel: {path: tiny}\ndata: {train: {task: arithmetic}}\n"
HELD_OUT = ["data.eval.task=arithmetic"]


def write(text: str, name: str = "recipe.yaml") -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def resolve(*overrides: str, text: str = MINIMAL) -> config.ResolvedRecipe:
    return config.load(write(text), overrides)


def load(*overrides: str, text: str = MINIMAL) -> config.Recipe:
    """The sections of a recipe, as config.yaml would hold them."""
    return resolve(*overrides, text=text).written


def problems(*overrides: str, text: str = MINIMAL) -> list[str]:
    """The lines a recipe is refused with."""
    with pytest.raises(config.RecipeError) as caught:
        load(*overrides, text=text)
    return caught.value.problems


def problem(*overrides: str, text: str = MINIMAL) -> str:
    """The only line a recipe is refused with."""
    (line,) = problems(*overrides, text=text)
    return line
