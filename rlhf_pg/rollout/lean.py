"""One decode step of the Llama family (Llama, Mistral, Qwen2, Qwen3), with nothing between its matrix products.

Transformers' modules do the same work in some sixty small operations a layer, whose overhead is most of the time of a
small model's step. Here it is about twenty, on the model's own live weights: no copies, nothing to synchronise.
Adapters and other replaced projections are called as modules.

    h = embedding
    per layer:  h += o_proj(attention(rope(q_proj(norm h)), rope(k_proj(norm h)), v_proj(norm h)))
                h += down_proj(act(gate_proj(norm h)) * up_proj(norm h))
    logits = head(norm h)
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_pg.rollout.cache import SlotCache

FAMILY = frozenset({"LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model"})


def can_decode(model: PreTrainedModel) -> bool:
    """Whether the model is one of the family as transformers has it, attends by `sdpa`, and computes in its weights'
    dtype (under autocast each operation chooses its own)."""
    decoder = model.get_decoder()
    known = type(decoder).__name__ in FAMILY and type(decoder).__module__.startswith("transformers.models.")
    attention = str(decoder.config._attn_implementation).removeprefix("tree_")  # models/tree_attention.py
    return known and attention == "sdpa"


def decode(model: PreTrainedModel, tokens: Tensor, position: Tensor, cache: SlotCache, mask: Tensor | None) -> Tensor:
    """Logits [n, V] after one more token of the first n rows of the cache, which must be aimed (`SlotCache.aim`).

    tokens, position [n] int64; mask [n, 1, 1, longest], added to the scores; None: every row is as long as the longest.
    """
    decoder: Any = model.get_decoder()
    hidden = F.embedding(tokens, decoder.embed_tokens.weight)  # [n, H]
    cos, sin = (x[:, 0, None] for x in decoder.rotary_emb(hidden[:, None], position[:, None]))  # [n, 1, size]
    half = sin.shape[-1] // 2
    sin = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
    for number, layer in enumerate(decoder.layers):
        attention, mlp = layer.self_attn, layer.mlp
        normed = _norm(layer.input_layernorm, hidden)
        query, key = (_rotate(_heads(attention, name, normed), cos, sin) for name in ("q", "k"))  # [n, heads, size]
        seen_keys, seen_values = cache.layers[number].write(key, _heads(attention, "v", normed))
        n, heads, size = query.shape
        grouped = query.view(n, seen_keys.shape[1], heads // seen_keys.shape[1], size)  # queries of one key head: rows
        mixed = F.scaled_dot_product_attention(grouped, seen_keys, seen_values, attn_mask=mask, scale=attention.scaling)
        hidden = hidden + _project(attention.o_proj, mixed.reshape(n, heads * size))
        normed = _norm(layer.post_attention_layernorm, hidden)
        gate = mlp.act_fn(_project(mlp.gate_proj, normed))
        hidden = hidden + _project(mlp.down_proj, gate.mul_(_project(mlp.up_proj, normed)))
    return _project(model.get_output_embeddings(), _norm(decoder.norm, hidden))


def _heads(attention: Any, name: str, normed: Tensor) -> Tensor:
    """[n, H] -> [n, heads, size], normed per head where the model does so (Qwen3)."""
    made = _project(getattr(attention, f"{name}_proj"), normed).view(len(normed), -1, attention.head_dim)
    norm = getattr(attention, f"{name}_norm", None)
    return made if norm is None else _norm(norm, made)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions; the first half of `sin` is negated: x cos + (-x2, x1) sin."""
    return (x * cos).addcmul_(x.roll(x.shape[-1] // 2, dims=-1), sin)


def _project(module: Any, x: Tensor) -> Tensor:
    return F.linear(x, module.weight, module.bias) if type(module) is nn.Linear else module(x)


def _norm(module: Any, x: Tensor) -> Tensor:
    return F.rms_norm(x, module.weight.shape, module.weight, module.variance_epsilon)
