"""Write a model folder that transformers and vLLM open, with what came beside the weights as it came."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_pg.models import folder as model_folder
from rlhf_pg.models.adapter import has_adapter, merged
from rlhf_pg.models.named_weights import without_adapter
from rlhf_pg.models.origin import SOURCE, origin_at
from rlhf_pg.storage.atomic_io import TEMPORARY, replace_folder, usual_modes

CONFIG, GENERATION = "config.json", "generation_config.json"
UNUSABLE = (  # what to do about faults of an export
    "The trained model could not be written at the end, or not be used: mend the file that is named. A tokenizer that "
    "reads its text another way beside this model has to lie in the model's own folder, without model.tokenizer."
)
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


def remember_model(model: PreTrainedModel, path: str, configured: torch.dtype | None) -> PreTrainedModel:
    """Note on the model what its export takes from the files it came from: dtype, generation_config.json, source.json.

    `configured`: the dtype that config.json names, for weights that cannot be looked into. transformers refuses to
    write some of the generation settings that it reads, so that file is passed on as it came.
    """
    place = model_folder.local(path, CONFIG)
    dtype = model_folder.dtype_of(place) if place else None
    file = place / GENERATION if place else None
    content = file.read_bytes() if file and file.is_file() else None
    source = place / SOURCE if place else None
    model.comes_from = origin_at(path)  # pyright: ignore
    model.origin = {  # pyright: ignore
        "dtype": dtype or configured,
        GENERATION: content,
        SOURCE: source.read_bytes() if source and source.is_file() else None,
    }
    return model


def remember_tokenizer(tokenizer: PreTrainedTokenizerBase, path: str) -> PreTrainedTokenizerBase:
    """Note on the tokenizer the files it came from: an export has these, since transformers rewrites them.

    What it writes may leave fields out, and older versions and other programs may not read it.
    """
    place = model_folder.local(path, "tokenizer_config.json")
    if place and not getattr(tokenizer, "_auto_class", None):  # code that comes with a model is copied by transformers
        named = [*model_folder.TOKENIZERS, *model_folder.TOKENIZER_SETTINGS, *tokenizer.vocab_files_names.values()]
        files = [place / name for name in named]
        files += [file for pattern in model_folder.TOKENIZER_PATTERNS for file in place.glob(pattern)]
        tokenizer.origin = {str(f.relative_to(place)): f.read_bytes() for f in files if f.is_file()}  # pyright: ignore
    return tokenizer


def export_dtype(name: str) -> torch.dtype | None:
    """Return the dtype that `model.export_dtype` names; None for "auto", that of the files the model came from."""
    return None if name == "auto" else getattr(torch, name)


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    weights: dict[str, torch.Tensor] | None = None,
    dtype: torch.dtype | None = None,
    beside: Mapping[str, bytes] | None = None,
) -> torch.dtype:
    """Write weights, configuration and tokenizer, with a LoRA adapter merged into the weights. Returns their dtype.

    `weights`: by parameter name, if those of the model are sharded. `dtype`: of the weights; None = that of the files
    the model came from. `beside`: more files by name, such as a model card. The live model does not change. A killed
    writer leaves no partial folder.
    """
    origin, written = _origin(model), written_dtype(model, dtype)
    if has_adapter(model):
        model, weights = merged(model)
    if written != torch.float32:
        weights = _rounded(model.state_dict() if weights is None else weights, written)
    unfinished = folder.with_name(f"{TEMPORARY}{folder.name}")
    settings, model.generation_config = model.generation_config, GenerationConfig()
    try:
        model.save_pretrained(unfinished, state_dict=weights)
    finally:
        model.generation_config = settings
    _save_generation(model, unfinished, origin)
    _save_tokenizer(tokenizer, unfinished)
    _write_dtype(unfinished / CONFIG, written)  # transformers writes that of the live weights
    for name, content in (beside or {}).items():
        (unfinished / name).write_bytes(content)
    usual_modes(unfinished)
    replace_folder(unfinished, folder)
    return written


def written_dtype(model: PreTrainedModel, dtype: torch.dtype | None) -> torch.dtype:
    """Return the dtype that `save_model` writes when it is asked for one, or for None."""
    return dtype or _origin(model)["dtype"] or without_adapter(model).dtype or torch.float32


def faults(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], *, trust_remote_code: bool = False
) -> list[str]:
    """Write all of an export but the weights to a temporary folder and read it again; return what is wrong with it.

    `texts` are encoded by the tokenizer as it is and as it is read again.
    """
    bare = without_adapter(model)
    name = tokenizer.name_or_path or "the tokenizer"
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        writes: list[tuple[str, Callable[[], Any]]] = [
            (f"{CONFIG} of {bare.config.name_or_path or 'the model'}", lambda: bare.config.save_pretrained(place)),
            (f"{GENERATION} of the same", lambda: _save_generation(bare, place, _origin(model))),
            (f"the tokenizer of {name}", lambda: _save_tokenizer(tokenizer, place)),
        ]
        wrong = [f"{what} cannot be written ({_cause(error)})" for what, error in _failed(writes)]
        if wrong:
            return wrong
        read: dict[str, Any] = {}
        trust = {"trust_remote_code": trust_remote_code}
        reads: list[tuple[str, Callable[[], Any]]] = [
            (CONFIG, lambda: AutoConfig.from_pretrained(place, **trust)),
            (
                f"the tokenizer of {name}",
                lambda: read.update(tokenizer=AutoTokenizer.from_pretrained(place, **trust)),
            ),
        ]
        wrong = [f"{what}, as written, cannot be read again ({_cause(error)})" for what, error in _failed(reads)]
    return wrong or [f"the tokenizer of {name}, as written: {d}" for d in _differences(tokenizer, read, texts)]


def _failed(steps: Iterable[tuple[str, Callable[[], Any]]]) -> list[tuple[str, Exception]]:
    failed = []
    for what, step in steps:
        try:
            step()
        except Exception as error:  # whatever transformers and models' own code raise
            failed.append((what, error))
    return failed


def _cause(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[: model_folder.WHY]}"


def _differences(
    tokenizer: PreTrainedTokenizerBase, read: Mapping[str, PreTrainedTokenizerBase], texts: Iterable[str]
) -> list[str]:
    """Say in what a tokenizer that was read again is another."""
    again, texts = read["tokenizer"], list(texts)
    changed = [
        text
        for text in texts
        if any(
            again.encode(text, add_special_tokens=added) != tokenizer.encode(text, add_special_tokens=added)
            for added in (False, True)
        )
    ]
    differences = [f"{len(changed)} of {len(texts)} prompts have other tokens"] if changed else []
    if again.chat_template != tokenizer.chat_template:
        differences.append("the chat template is another")
    for name in SPECIAL:
        if getattr(again, name) != getattr(tokenizer, name):
            differences.append(f"{name} is {getattr(again, name)}, not {getattr(tokenizer, name)}")
    return differences


def _save_generation(model: PreTrainedModel, folder: Path, origin: Mapping[str, Any]) -> None:
    """Write generation_config.json as it came, else the model's settings, those too that save_pretrained refuses; and
    source.json, which names the licence, if there was one."""
    if origin[SOURCE] is not None:
        (folder / SOURCE).write_bytes(origin[SOURCE])
    if origin[GENERATION] is not None:
        (folder / GENERATION).write_bytes(origin[GENERATION])
    elif model.generation_config is not None:
        model.generation_config.to_json_file(folder / GENERATION)  # pyright: ignore[reportArgumentType]


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    files: Mapping[str, bytes] = getattr(tokenizer, "origin", {})
    if not files:
        tokenizer.save_pretrained(folder)
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)


def _write_dtype(file: Path, dtype: torch.dtype) -> None:
    """Set the dtype that a config.json names, for the model and for each of its parts."""
    config, name = json.loads(file.read_text(encoding="utf-8")), str(dtype).split(".")[1]
    for part in config.values():
        if isinstance(part, dict) and "dtype" in part:
            part["dtype"] = name
    file.write_text(json.dumps(config | {"dtype": name}, indent=2) + "\n", encoding="utf-8")


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
