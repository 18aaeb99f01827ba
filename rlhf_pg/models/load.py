"""Load a causal language model and its tokenizer from `model.path`, and save them. Weights are safetensors only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from rlhf_pg.models import gguf
from rlhf_pg.models.adapter import has_adapter, merged, quantization
from rlhf_pg.models.tokenizer import character_tokenizer
from rlhf_pg.storage.atomic_io import TEMPORARY, replace_folder

TINY = "tiny"


def load_tokenizer(path: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a folder, hub name or GGUF file; of "tiny", build the embedded character tokenizer."""
    if path == TINY:
        return character_tokenizer()
    return AutoTokenizer.from_pretrained(folder_or_name(path), trust_remote_code=trust_remote_code)


def load_model(
    path: str,
    *,
    attention: str = "sdpa",
    trust_remote_code: bool = False,
    seed: int = 0,
    quantize: Literal["4bit", "8bit"] | None = None,
    arithmetic: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """Load a folder, hub name or GGUF file in float32 (`model.dtype` is the arithmetic's, not the weights').

    "tiny" builds the embedded Qwen2-architecture model with random weights drawn from `seed`. `quantize` puts linear
    layers in 4 or 8 bits on the CUDA device; they compute in `arithmetic` and cannot be trained.
    Raises ValueError for a folder without safetensors weights, and where quantized weights are not possible.
    """
    if path == TINY:
        return tiny_model(seed=seed, vocabulary=len(character_tokenizer()), attention=attention)
    path = folder_or_name(path)
    _refuse_pickle(Path(path))
    quantized: dict[str, Any] = {}
    if quantize:
        quantized = {
            "quantization_config": quantization(quantize, arithmetic),
            "device_map": {"": torch.cuda.current_device()},
        }
    model = AutoModelForCausalLM.from_pretrained(
        path,
        dtype=torch.float32,
        attn_implementation=attention,
        trust_remote_code=trust_remote_code,
        use_safetensors=True,
        **quantized,
    )
    return model.train()


def load_config(path: str, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """Load the model's configuration; read no weights."""
    if path == TINY:
        return tiny_config(len(character_tokenizer()))
    return AutoConfig.from_pretrained(folder_or_name(path), trust_remote_code=trust_remote_code)


def folder_or_name(path: str) -> str:
    """Return what transformers loads for a model path: of a GGUF file, the folder it is converted into."""
    return str(gguf.converted(path)) if gguf.is_gguf(path) else path


def context_length(config: PretrainedConfig) -> int:
    """Return the largest number of positions that the model was made for."""
    return int(getattr(config.get_text_config(), "max_position_embeddings", 0) or 2**31)


def switch_off_dropout(model: PreTrainedModel) -> None:
    """Set every dropout to 0: with dropout, scoring and sampling would disagree at the same weights."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if getattr(module, "attention_dropout", 0):
            setattr(module, "attention_dropout", 0.0)  # noqa: B010, a plain number on a Module


def tiny_model(*, seed: int, vocabulary: int, attention: str = "sdpa", **shape) -> Qwen2ForCausalLM:
    """Build the embedded Qwen2 model with random weights, the same for the same seed."""
    config = tiny_config(vocabulary, attn_implementation=attention, **shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen2ForCausalLM(config).float().train()


def tiny_config(vocabulary: int, **shape) -> Qwen2Config:
    """Build the embedded model's configuration: 2 layers, hidden size 128, 0.4 million parameters."""
    tokenizer = character_tokenizer()
    defaults: dict[str, Any] = dict(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.05,  # 0.6 / sqrt(hidden size); the default 0.02 suits hidden sizes in the thousands
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen2Config(vocab_size=vocabulary, **(defaults | shape))  # pyright: ignore[reportArgumentType]


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write a model folder that transformers and vLLM open, with a LoRA adapter merged into the weights.

    `weights`: by parameter name, if those of the model are sharded. The live model does not change. A killed writer
    leaves no partial folder.
    """
    if has_adapter(model):
        model, weights = merged(model)
    unfinished = folder.with_name(f"{TEMPORARY}{folder.name}")
    model.save_pretrained(unfinished, state_dict=weights)
    tokenizer.save_pretrained(unfinished)
    replace_folder(unfinished, folder)


def _refuse_pickle(folder: Path) -> None:
    """Raise ValueError if the folder, where it is one, has no readable config.json or no safetensors weights."""
    if not folder.is_dir():
        return
    if not (folder / "config.json").exists():
        raise ValueError(f"{folder}: no config.json there; model.path must be a Hugging Face model folder or hub name")
    try:
        json.loads((folder / "config.json").read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{folder / 'config.json'}: not valid JSON ({error})") from error
    if not list(folder.glob("*.safetensors")):
        raise ValueError(f"{folder}: no *.safetensors weights there; pickle weights are not loaded, convert them first")
