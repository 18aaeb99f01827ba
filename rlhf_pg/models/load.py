"""Load a causal language model and its tokenizer from `model.path`. Weights are safetensors only."""

from __future__ import annotations

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

from rlhf_pg.models import folder, gguf
from rlhf_pg.models.adapter import quantization
from rlhf_pg.models.exact import possible_attention, with_exact_attention
from rlhf_pg.models.export import remember_origin
from rlhf_pg.models.tokenizer import character_tokenizer

TINY = "tiny"


def load_tokenizer(path: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a folder, hub name or GGUF file; of "tiny", build the embedded character tokenizer."""
    if path == TINY:
        return character_tokenizer()
    path = folder_or_name(path)
    folder.check_tokenizer(Path(path))
    with folder.reading(path, "tokenizer"):
        return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)


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
    Raises ValueError, with file and cause, for weights that cannot be read or do not cover the model, and where
    quantized weights are not possible. Attention is eager where only that computes all that the model asks for.
    """
    if path == TINY:
        return tiny_model(seed=seed, vocabulary=len(character_tokenizer()), attention=attention)
    configured: Any = load_config(path, trust_remote_code=trust_remote_code)
    attention = possible_attention(configured, attention)
    path = folder_or_name(path)
    folder.check_weights(Path(path))
    quantized: dict[str, Any] = {}
    if quantize:
        quantized = {
            "quantization_config": quantization(quantize, arithmetic),
            "device_map": {"": torch.cuda.current_device()},
        }
    with folder.reading(path, "model"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=torch.float32,
            attn_implementation=attention,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            output_loading_info=True,
            **quantized,
        )
    model, loading = loaded
    _refuse_gaps(path, loading)
    if not quantize:
        model = with_exact_attention(model.eval())
    return remember_origin(model.train(), path, folder.dtype_of(Path(path)) or configured.dtype)


def _refuse_gaps(path: str, loading: dict[str, Any]) -> None:
    """Raise ValueError for tensors that transformers drew at random: absent from the files, or of other sizes there."""
    absent = sorted(loading["missing_keys"])
    others = [f"{name} {list(files)} (the model's: {list(model)})" for name, files, model in loading["mismatched_keys"]]
    if not absent and not others:
        return
    names = ", ".join([*absent, *others][:3])
    unused = sorted(loading["unexpected_keys"])
    hint = f"; the files have {len(unused)} tensors that the model does not, such as {unused[0]}" if unused else ""
    raise ValueError(
        f"{path}: the files of weights lack {len(absent) + len(others)} of the model's tensors: {names}{hint}. They "
        "would be random numbers: files are incomplete, or config.json is another model's"
    )


def load_config(path: str, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """Load the model's configuration; read no weights."""
    if path == TINY:
        return tiny_config(len(character_tokenizer()))
    path = folder_or_name(path)
    folder.check_config(Path(path))
    with folder.reading(path, "configuration"):
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)


def folder_or_name(path: str) -> str:
    """Return what transformers loads for a model path: of a GGUF file, the folder it is converted into."""
    return str(gguf.converted(path)) if gguf.is_gguf(path) else path


def switch_off_dropout(model: PreTrainedModel) -> None:
    """Switch off all that is random in training: with it, scoring and sampling would disagree at the same weights.

    Every module goes into evaluation mode, since some read their dropout from the configuration; but those that can
    checkpoint, which they do in training mode only. Dropouts and layer drops kept as numbers become 0.
    """
    model.eval()
    for module in model.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.training = True
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and "drop" in name:
                setattr(module, name, 0.0)


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
