"""Write a model folder that transformers and vLLM open."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from rlhf_pg.models.adapter import has_adapter, merged
from rlhf_pg.models.named_weights import without_adapter
from rlhf_pg.storage.atomic_io import TEMPORARY, replace_folder

GENERATION = "generation_config.json"
SOURCE = "source.json"  # in a folder that comes from a GGUF file: the model's name, licence and file


def remember_origin(model: PreTrainedModel, path: str, dtype: torch.dtype | None) -> PreTrainedModel:
    """Note on the model what its export takes from the files it came from: dtype, generation_config.json, source.json.

    transformers refuses to write some of the generation settings that it reads, so that file is passed on as it came.
    """
    file = cached_file(path, GENERATION, _raise_exceptions_for_missing_entries=False)
    source = Path(path) / SOURCE
    model.origin = {  # pyright: ignore
        "dtype": dtype,
        GENERATION: Path(file).read_bytes() if file else None,
        SOURCE: source.read_bytes() if source.is_file() else None,
    }
    return model


def export_dtype(name: str) -> torch.dtype | None:
    """Return the dtype that `model.export_dtype` names; None for "auto", that of the files the model came from."""
    return None if name == "auto" else getattr(torch, name)


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    weights: dict[str, torch.Tensor] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write weights, configuration and tokenizer, with a LoRA adapter merged into the weights.

    `weights`: by parameter name, if those of the model are sharded. `dtype`: of the weights; None = that of the files
    the model came from. The live model does not change. A killed writer leaves no partial folder.
    """
    origin = _origin(model)
    dtype = dtype or origin["dtype"]
    if has_adapter(model):
        model, weights = merged(model)
    if dtype is not None and dtype != torch.float32:
        weights = _rounded(model.state_dict() if weights is None else weights, dtype)
    unfinished = folder.with_name(f"{TEMPORARY}{folder.name}")
    settings, model.generation_config = model.generation_config, GenerationConfig()
    try:
        model.save_pretrained(unfinished, state_dict=weights)
    finally:
        model.generation_config = settings
    _save_settings(model, tokenizer, unfinished, origin, dtype)
    replace_folder(unfinished, folder)


def save_settings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write all of an export but the weights. Raises what transformers raises for settings it cannot write."""
    origin = _origin(model)
    folder.mkdir(parents=True, exist_ok=True)
    without_adapter(model).config.save_pretrained(folder)
    _save_settings(without_adapter(model), tokenizer, folder, origin, None)


def _save_settings(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    origin: dict[str, Any],
    dtype: torch.dtype | None,
) -> None:
    tokenizer.save_pretrained(folder)
    if origin[SOURCE] is not None:
        (folder / SOURCE).write_bytes(origin[SOURCE])
    if origin[GENERATION] is not None:
        (folder / GENERATION).write_bytes(origin[GENERATION])
    elif model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    if dtype is not None:  # transformers writes that of the live weights
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"dtype": str(dtype).split(".")[1]}, indent=2) + "\n")


def _origin(model: PreTrainedModel) -> dict[str, Any]:
    return getattr(without_adapter(model), "origin", {"dtype": None, GENERATION: None, SOURCE: None})


def _rounded(weights: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return the weights in `dtype`, those that share memory (a tied head) once, under both names."""
    rounded: dict[tuple[int, torch.Size], torch.Tensor] = {}
    out = {}
    for name, tensor in weights.items():
        if not tensor.is_floating_point():
            out[name] = tensor
            continue
        place = (tensor.data_ptr(), tensor.shape)
        if place not in rounded:
            rounded[place] = tensor.to(dtype)
        out[name] = rounded[place]
    return out
