"""The cold start that a training recipe asks for: `run.cold_start` makes the model that the recipe starts from."""

from __future__ import annotations

import json
from pathlib import Path

from rlhf_pg import config
from rlhf_pg.commands.run_sft import sft
from rlhf_pg.config import ResolvedRecipe, SftRecipe, places


def make_model(recipe: ResolvedRecipe) -> None:
    """Run the recipe that `run.cold_start` names, if there is one and the folder `model.path` is not there yet.

    Raises ValueError under a launch of several processes, which supervised fine-tuning does not know.
    """
    name, model = recipe.run.cold_start, recipe.model.path
    if name is None or not places.is_missing_folder(model):
        return
    if recipe.launch.processes > 1:
        raise ValueError(f"model.path: no folder {model}; make it first, on one process: rlhf-pg sft {name}")
    overrides = [f"run.dir={Path(model).parent}", f"run.seed={recipe.run.seed}", "run.resume=auto"]
    overrides.append(f"log.live={recipe.log.live}")
    if recipe.data.train.path is not None:
        paths = recipe.data.train.path
        overrides.append(
            f"data.train.path={json.dumps([str(p) for p in paths] if isinstance(paths, list) else str(paths))}"
        )
    sft(config.load(name, overrides, SftRecipe), places.find(name))
