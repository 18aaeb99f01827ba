"""How large a model is, by what takes memory and work: counted on a model without storage, from its configuration."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from rlhf_pg.config import Lora, ResolvedRecipe
from rlhf_pg.models import llama_family
from rlhf_pg.models.adapter import add_adapter
from rlhf_pg.models.load import load_config
from rlhf_pg.rollout import llama_decode


@dataclass(frozen=True)
class Size:
    """Numbers, not bytes, of one model. Tied parameters count once."""

    parameters: int
    trainable: int
    largest: int  # of the largest trainable tensor
    layer: int  # of one layer
    matrices: int  # in the linear maps of all layers, adapters left out: what a token is multiplied by
    adapters: int  # in low-rank matrices
    adapter_width: int  # outputs of all low-rank first matrices of one layer: kept per token
    copied: int  # that the native engine lays out anew to decode, on a CPU in float32
    cast: int  # the same under autocast, on any device
    hidden: int
    intermediate: int
    layers: int
    queries: int  # heads x size, of one layer
    keys_values: int  # the same of keys and values together
    vocabulary: int
    light: bool = False  # whether norms and MLPs keep less than autograd would (models/fused.py)

    @property
    def head(self) -> int:
        """Numbers that a state is multiplied by to give logits."""
        return self.hidden * self.vocabulary


def size_of(config: PretrainedConfig, lora: Lora | None = None, *, trust_remote_code: bool = False) -> Size:
    """The size of the causal language model of a configuration, with an adapter if the recipe has one.

    Raises ValueError for a configuration that is no decoder with gated MLPs of one width.
    """
    text: Any = config.get_text_config()
    missing = [name for name in ("hidden_size", "intermediate_size", "num_hidden_layers") if not hasattr(text, name)]
    if missing:
        raise ValueError(
            f"{type(text).__name__} has no {', '.join(missing)}: the plan knows decoders with gated MLPs only"
        )
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
        if lora:
            model = add_adapter(model, lora)
    copied, cast = llama_decode.copied(model) if llama_decode.can_decode(model) else (0, 0)
    trained = [p.numel() for p in model.parameters() if p.requires_grad]
    layers = _layers(model.get_decoder())
    low_rank = [p.numel() for n, p in model.named_parameters() if "lora_" in n]
    return Size(
        parameters=sum(p.numel() for p in model.parameters()),
        trainable=sum(trained),
        largest=max(trained, default=0),
        layer=max(sum(p.numel() for p in layer.parameters()) for layer in layers),
        matrices=sum(_matrices(layer) for layer in layers),
        adapters=sum(low_rank),
        adapter_width=sum(p.shape[0] for n, p in layers[0].named_parameters() if "lora_A" in n),
        copied=copied,
        cast=cast,
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        layers=text.num_hidden_layers,
        queries=text.num_attention_heads * head_size(text),
        keys_values=2 * text.num_key_value_heads * head_size(text),
        vocabulary=text.vocab_size,
        light=text.model_type in llama_family.MODEL_TYPES,
    )


def sizes_of(recipe: ResolvedRecipe, config: PretrainedConfig) -> tuple[Size, Size | None]:
    """The policy's, and a critic's if it has a model of its own (which has no use for a head)."""
    trust = recipe.model.trust_remote_code
    policy = size_of(config, recipe.model.lora, trust_remote_code=trust)
    algorithm = recipe.algorithm
    if not algorithm or not algorithm.needs_critic or recipe.critic.backbone == "policy":
        return policy, None
    other = config
    if recipe.critic.backbone != "copy":
        other = load_config(recipe.critic.backbone, trust_remote_code=trust)
    return policy, _without_head(size_of(other, recipe.model.lora, trust_remote_code=trust), other)


def head_size(text: Any) -> int:
    return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads


def cache_per_token(size: Size) -> int:
    """Numbers the key/value cache holds per token: keys and values of every layer."""
    return size.layers * size.keys_values


def _without_head(size: Size, config: PretrainedConfig) -> Size:
    unused = 0 if config.get_text_config().tie_word_embeddings else size.head
    trained = unused if size.trainable == size.parameters else 0
    return replace(size, parameters=size.parameters - unused, trainable=size.trainable - trained)


def _layers(decoder: Any) -> list[nn.Module]:
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ValueError(f"{type(decoder).__name__} has no list of layers: the plan cannot count it")
    return list(layers)


def _matrices(layer: nn.Module) -> int:
    return sum(p.numel() for n, p in layer.named_parameters() if p.dim() == 2 and "lora_" not in n)
