"""How large a model is, by what takes memory and work: counted on a model without storage, from its configuration."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from rlhf_pg.config import Lora, Model, ResolvedRecipe
from rlhf_pg.models import llama_family
from rlhf_pg.models.adapter import add_adapter
from rlhf_pg.models.load import load_config
from rlhf_pg.rollout import llama_decode

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")  # of the MLPs whose activations are counted
FLOAT32 = 4  # bytes: weights, gradients and optimizer state are float32 whatever `model.dtype`


class UnknownShape(ValueError):
    """Says why there is no estimate of a model: its memory and work are not counted here. It may train all the same."""


@dataclass(frozen=True)
class ModelSize:
    """Counts of numbers, not bytes, of one model. Tied parameters count once."""

    parameters: int
    trainable: int
    largest_tensor: int  # of the trainable ones
    layer_parameters: int  # of one layer
    linear: int  # weights in the linear maps of all layers, adapters left out: what a token is multiplied by
    adapters: int  # weights in low-rank matrices
    adapter_width: int  # outputs of all low-rank first matrices of one layer: kept per token
    decode_copy: int  # weights that the native engine lays out anew to decode, on a CPU in float32
    decode_cast: int  # the same under autocast, on any device
    hidden: int
    intermediate: int
    layers: int
    query_width: int  # heads x head size, of one layer
    key_value_width: int  # the same of keys and values together
    vocabulary: int
    fused: bool = False  # norms and MLPs keep less than autograd would (models/llama_family.py)

    @property
    def head(self) -> int:
        """Weights that a state is multiplied by to give logits."""
        return self.hidden * self.vocabulary

    @property
    def cache_per_token(self) -> int:
        """Numbers the key/value cache holds per token: keys and values of every layer."""
        return self.layers * self.key_value_width


def arithmetic_bytes(model: Model) -> int:
    """Return the bytes of a number in `model.dtype`."""
    return 2 if model.dtype == "bfloat16" else FLOAT32


def model_config(model: Model) -> PretrainedConfig:
    """Return the configuration of `model.path`.

    Raises ValueError if there is none.
    """
    path = model.path
    if Path(path).is_dir() and not (Path(path) / "config.json").is_file():
        raise ValueError(
            f"model.path: no config.json in {path}; the plan reads that file of a Hugging Face model folder"
        )
    return load_config(path, trust_remote_code=model.trust_remote_code)


def size_of(config: PretrainedConfig, lora: Lora | None = None, *, trust_remote_code: bool = False) -> ModelSize:
    """Count the causal language model of a configuration, with an adapter if the recipe has one.

    Raises UnknownShape for one that is no decoder of equal layers with gated MLPs and attention to everything before.
    """
    text: Any = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"} or getattr(text, "sliding_window", None):
        kinds = ", ".join(sorted(kinds - {"full_attention"})) or "sliding windows"
        raise UnknownShape(f"{text.model_type} has layers that do not attend to everything before them ({kinds})")
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    _check_layers(text, model)
    if lora:
        with torch.device("meta"):
            model = add_adapter(model, lora)
    decode_copy, decode_cast = llama_decode.copied(model) if llama_decode.can_decode(model) else (0, 0)
    trainable = [p.numel() for p in model.parameters() if p.requires_grad]
    layers = _layers(model.get_decoder())
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return ModelSize(
        parameters=sum(p.numel() for p in model.parameters()),
        trainable=sum(trainable),
        largest_tensor=max(trainable, default=0),
        layer_parameters=max(sum(p.numel() for p in layer.parameters()) for layer in layers),
        linear=sum(_linear(layer) for layer in layers),
        adapters=sum(p.numel() for name, p in model.named_parameters() if "lora_" in name),
        adapter_width=sum(p.shape[0] for name, p in layers[0].named_parameters() if "lora_A" in name),
        decode_copy=decode_copy,
        decode_cast=decode_cast,
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        layers=text.num_hidden_layers,
        query_width=text.num_attention_heads * head_size,
        key_value_width=2 * text.num_key_value_heads * head_size,
        vocabulary=text.vocab_size,
        fused=text.model_type in llama_family.MODEL_TYPES,
    )


def sizes_of(recipe: ResolvedRecipe, config: PretrainedConfig) -> tuple[ModelSize, ModelSize | None]:
    """Return the sizes of the policy, and of the critic if it has a model of its own (which has no use for a head)."""
    trust = recipe.model.trust_remote_code
    policy = size_of(config, recipe.model.lora, trust_remote_code=trust)
    if recipe.passes.values != "critic":
        return policy, None
    backbone = config
    if recipe.critic.backbone != "copy":
        backbone = load_config(recipe.critic.backbone, trust_remote_code=trust)
    return policy, _without_head(size_of(backbone, recipe.model.lora, trust_remote_code=trust), backbone)


def _without_head(size: ModelSize, config: PretrainedConfig) -> ModelSize:
    unused = 0 if config.get_text_config().tie_word_embeddings else size.head
    unused_trainable = unused if size.trainable == size.parameters else 0
    return replace(size, parameters=size.parameters - unused, trainable=size.trainable - unused_trainable)


def _check_layers(text: Any, model: Any) -> None:
    """Raise UnknownShape unless all that `size_of` counts is there and is what it is taken for."""
    name = text.model_type
    numbers = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    missing = [number for number in numbers if not isinstance(getattr(text, number, None), int)]
    if missing:
        raise UnknownShape(f"the configuration of {name} has no {', '.join(missing)}")
    layers = getattr(model.get_decoder(), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise UnknownShape(f"{name} has no list of layers")
    if not all(isinstance(getattr(getattr(x, "mlp", None), p, None), nn.Module) for x in layers for p in PROJECTIONS):
        raise UnknownShape(f"{name} has layers whose MLP is not {', '.join(PROJECTIONS)}")


def _layers(decoder: Any) -> list[nn.Module]:
    return list(decoder.layers)


def _linear(layer: nn.Module) -> int:
    return sum(p.numel() for name, p in layer.named_parameters() if p.dim() == 2 and "lora_" not in name)
