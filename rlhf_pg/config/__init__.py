"""The recipe of a run: its keys, how it is read, what contradicts, what has no effect. Imports no torch."""

from rlhf_pg.config.learning import KL, Critic, CriticOptimizer, Mismatch, Optimizer, Update
from rlhf_pg.config.load import dump, load, parse
from rlhf_pg.config.recipe import DataSource, Log, Lora, Model, Recipe, SftRecipe
from rlhf_pg.errors import RecipeError, RunError

__all__ = [
    "KL",
    "Critic",
    "CriticOptimizer",
    "DataSource",
    "Log",
    "Lora",
    "Mismatch",
    "Model",
    "Optimizer",
    "Recipe",
    "RecipeError",
    "RunError",
    "SftRecipe",
    "Update",
    "dump",
    "load",
    "parse",
]
