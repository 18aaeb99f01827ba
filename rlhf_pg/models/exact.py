"""Which of the faster ways to compute a model give its own numbers, found out on a few random tokens.

The measure is the model's eager attention: what its authors wrote. `sdpa` knows no soft-capped scores and no attention
sinks, and a model may do more in its attention than the shared code knows. Architectures of the Llama family are known
to be plain and are not measured.
"""

from __future__ import annotations

import inspect
import sys
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from rlhf_pg.models.llama_family import in_llama_family

LIMIT = 1e-4  # of a log-prob or a state, relative to the largest state, in float32
TOKENS = 20
SHARED_OPTIONS = {
    *("module", "query", "key", "value", "attention_mask", "scaling", "dropout", "is_causal", "position_bias"),
    *("kwargs", "head_mask", "sliding_window", "position_ids", "output_attentions"),
}


def possible_attention(config: PretrainedConfig, attention: str) -> str:
    """Return `attention`, or "eager" where transformers has no sdpa for the architecture."""
    try:
        model_class: Any = AutoModelForCausalLM._model_mapping[type(config)]  # pyright: ignore[reportPrivateUsage, reportIndexIssue, reportAttributeAccessIssue]
    except KeyError:  # code that comes with the model
        return attention
    return "eager" if attention == "sdpa" and not model_class._supports_sdpa else attention


@torch.no_grad()
def with_exact_attention(model: PreTrainedModel) -> PreTrainedModel:
    """Switch a model from sdpa to eager attention if only that computes all it asks for; return the model."""
    decoder = model.get_decoder()
    if model.config._attn_implementation != "sdpa" or in_llama_family(decoder):
        return model
    if own_options(decoder):
        model.set_attn_implementation("eager")
        return model
    tokens = random_tokens(model)
    logits = model(input_ids=tokens, use_cache=False).logits
    model.set_attn_implementation("eager")
    if not close(logits, model(input_ids=tokens, use_cache=False).logits):
        return model
    model.set_attn_implementation("sdpa")
    return model


def own_options(decoder: nn.Module) -> set[str]:
    """Return what the model's attention asks of its eager function that other attention functions leave out."""
    eager = getattr(sys.modules.get(type(decoder).__module__), "eager_attention_forward", None)
    if eager is None:
        return set()
    options = set(inspect.signature(eager).parameters) - SHARED_OPTIONS
    text: Any = decoder.config.get_text_config()  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    if getattr(text, "attn_logit_softcapping", None) is None:
        options -= {"softcap"}
    return options


def random_tokens(model: nn.Module, rows: int = 2) -> Tensor:
    """Return tokens [rows, TOKENS] on the model's device, always the same."""
    embedding: Tensor = model.get_input_embeddings().weight  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    generator = torch.Generator().manual_seed(0)
    return torch.randint(2, len(embedding), (rows, TOKENS), generator=generator).to(embedding.device)


def close(a: Tensor, b: Tensor) -> bool:
    """Return whether two results are the same but for rounding."""
    return bool((a - b).abs().max() <= LIMIT * b.abs().max())
