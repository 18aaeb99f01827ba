"""The recipe of a run: its keys, how it is read, what contradicts, what has no effect. Imports no torch."""

from rlhf_pg.config.launch import Launch
from rlhf_pg.config.learning import KL, Critic, CriticOptimizer, Mismatch, Optimizer, Update
from rlhf_pg.config.load import dump, load, load_saved, parse
from rlhf_pg.config.recipe import DataSource, Log, Lora, Model, Recipe, SftRecipe
from rlhf_pg.config.resolved import ResolvedRecipe, ScoringPasses
from rlhf_pg.errors import RecipeError, RunError

__all__ = [
    "KL",
    "Critic",
    "CriticOptimizer",
    "DataSource",
    "Launch",
    "Log",
    "Lora",
    "Mismatch",
    "Model",
    "Optimizer",
    "Recipe",
    "RecipeError",
    "ResolvedRecipe",
    "RunError",
    "ScoringPasses",
    "SftRecipe",
    "Update",
    "dump",
    "load",
    "load_saved",
    "parse",
]
