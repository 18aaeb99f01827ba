"""The model card that goes into a run's model folder, and into that of its adapter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel

from rlhf_pg.config import ResolvedRecipe, SftRecipe
from rlhf_pg.data.source import hub_name
from rlhf_pg.models.export import export_dtype, written_dtype
from rlhf_pg.models.origin import origin_of
from rlhf_pg.report import model_card, run_record
from rlhf_pg.storage.run_dir import RunDir
from rlhf_pg.training.launch_facts import without_secrets

Files = dict[str, bytes]  # by name


def card_files(
    recipe: ResolvedRecipe | SftRecipe,
    folder: RunDir,
    model: PreTrainedModel,
    summary: Mapping[str, Any],
    warn: Callable[[str], None],
) -> tuple[Files, Files]:
    """Return the files of the card for the model's folder and those for the adapter's.

    A card is not worth a trained model: if it cannot be made, that is said, and there is none.
    """
    source = recipe.data.train
    hub_data = hub_name(source.task, source.path, source.dataset)
    written = str(written_dtype(model, export_dtype(recipe.model.export_dtype))).removeprefix("torch.")
    try:
        run = run_record.read(folder.path)
        text = without_secrets(run.config_text)
        run = replace(run, summary=dict(summary), launches=folder.launches, config_text=text)
        facts: dict[str, Any] = dict(run=run, origin=origin_of(model), datasets=[hub_data] if hub_data else [])
        return model_card.files(**facts, dtype=written), model_card.files(**facts, dtype="float32", adapter=True)
    except Exception as error:
        warn(f"no model card: {type(error).__name__}: {error}")
        return {}, {}
