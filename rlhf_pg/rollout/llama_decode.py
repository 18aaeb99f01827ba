"""Decode steps of the Llama family (Llama, Mistral, Qwen2, Qwen3), with nothing between their matrix products.

Transformers' modules do the same work in some sixty small operations a layer, whose overhead is most of the time of a
small model's step. Here it is about twenty. The weights of plain linear layers are copied once per `LlamaDecode`: on a
CPU in float32 those with one input side by side, as one product, and large ones in the order in which a product with
few rows reads them; under autocast in its dtype, side by side, instead of a cast at every step. Adapters and other
replaced projections are called as modules.

    h = embedding
    per layer:  h += o_proj(attention(rope(q_proj(norm h)), rope(k_proj(norm h)), v_proj(norm h)))
                h += down_proj(act(gate_proj(norm h)) * up_proj(norm h))
    logits = head(norm h)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_pg.models.llama_family import in_llama_family
from rlhf_pg.models.packed_attention import base_attention
from rlhf_pg.rollout.attention import Masks
from rlhf_pg.rollout.cache import SlotCache

LAYER_OPERATIONS = 20  # of a decode step, about: what an estimate of its time counts
LARGE = 200_000  # numbers in a weight, from which on its layout matters more than a call's overhead


def can_decode(model: PreTrainedModel) -> bool:
    """Return whether the model is one of the family as transformers has it, attending by `sdpa`."""
    decoder = model.get_decoder()
    return in_llama_family(decoder) and base_attention(decoder.config) == "sdpa"


class LlamaDecode:
    """Decode steps at the weights that `model` has now: build another when they change. rows: of a step, about.

    Computes in the weights' dtype; under autocast products are in its dtype, norms and sums of states in the weights'.
    """

    def __init__(self, model: PreTrainedModel, rows: int) -> None:
        self.decoder: Any = model.get_decoder()
        self.head: Any = model.get_output_embeddings()
        self.kinds = getattr(self.decoder.config, "layer_types", None) or []
        self.products: dict[tuple[nn.Module, ...], Callable[[Tensor], Tensor]] = {}
        weight = self.decoder.embed_tokens.weight
        kind = weight.device.type
        self.cast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        if self.cast is None and (kind, weight.dtype) != ("cpu", torch.float32):
            return
        for linears in [*_products(self.decoder), (self.head,)]:
            if all(type(m) is nn.Linear for m in linears):
                self.products[linears] = _product(linears, rows, self.cast)

    def __call__(self, tokens: Tensor, position: Tensor, cache: SlotCache, masks: Masks | None) -> Tensor:
        """Return logits [n, V] after one more token of the first n rows of the cache, aimed by `SlotCache.aim`.

        tokens, position [n] int64; masks [n, 1, 1, longest], added to the scores, or one for each kind of
        layer; None: no row hides any column.
        """
        hidden = F.embedding(tokens, self.decoder.embed_tokens.weight)  # [n, H]
        cos, sin = (x[:, 0, None] for x in self.decoder.rotary_emb(hidden[:, None], position[:, None]))  # [n, 1, size]
        half = sin.shape[-1] // 2
        sin = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
        for number, layer in enumerate(self.decoder.layers):
            query, key, value = self._heads(layer.self_attn, _norm(layer.input_layernorm, hidden), cos, sin)
            if self.cast:
                query, key = query.to(self.cast), key.to(self.cast)
            keys, values = cache.layers[number].write(key, value)
            mask = masks[self.kinds[number]] if isinstance(masks, dict) else masks
            mixed = _attend(query, keys, values, layer.self_attn.scaling, mask)
            hidden = hidden + self._project(mixed, layer.self_attn.o_proj)
            normed = _norm(layer.post_attention_layernorm, hidden)
            gate, up = self._project(normed, layer.mlp.gate_proj, layer.mlp.up_proj).chunk(2, dim=-1)
            hidden = hidden + self._project(layer.mlp.act_fn(gate).mul_(up), layer.mlp.down_proj)
        return self._project(_norm(self.decoder.norm, hidden), self.head)

    def _project(self, x: Tensor, *modules: Any) -> Tensor:
        """Return the outputs of linear modules for x [n, H], side by side."""
        product = self.products.get(modules)
        if product is not None:
            return product(x)
        outputs = [F.linear(x, m.weight, m.bias) if type(m) is nn.Linear else m(x) for m in modules]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)

    def _heads(self, attention: Any, normed: Tensor, cos: Tensor, sin: Tensor) -> list[Tensor]:
        """Project [n, H] to queries, keys, values, each [n, heads, size], normed per head as Qwen3 does."""
        size = attention.head_dim
        heads = self._project(normed, attention.q_proj, attention.k_proj, attention.v_proj).view(len(normed), -1, size)
        groups = attention.num_key_value_groups
        kv_heads = heads.shape[1] // (groups + 2)
        rotated, value = heads.split([heads.shape[1] - kv_heads, kv_heads], dim=1)
        if hasattr(attention, "q_norm"):
            query, key = rotated.split([groups * kv_heads, kv_heads], dim=1)
            rotated = torch.cat([_norm(attention.q_norm, query), _norm(attention.k_norm, key)], dim=1)
        return [*_rotate(rotated, cos, sin).split([groups * kv_heads, kv_heads], dim=1), value]


def copied(model: PreTrainedModel) -> tuple[int, int]:
    """Return how many numbers `LlamaDecode` holds beside the weights, in float32 on a CPU and under autocast.

    `model` may be without storage.
    """
    groups = [*_products(model.get_decoder()), (model.get_output_embeddings(),)]
    plain = [[m.weight.numel() for m in linears] for linears in groups if all(type(m) is nn.Linear for m in linears)]
    in_float32 = [sum(sizes) for sizes in plain if len(sizes) > 1 or sum(sizes) >= LARGE]
    return sum(in_float32), sum(map(sum, plain))


def _products(decoder: Any) -> list[tuple[nn.Module, ...]]:
    """Return groups of linear layers: those of a group have one input, and so are one product."""
    groups: list[tuple[nn.Module, ...]] = []
    for layer in decoder.layers:
        attention, mlp = layer.self_attn, layer.mlp
        groups += [(attention.q_proj, attention.k_proj, attention.v_proj), (attention.o_proj,)]
        groups += [(mlp.gate_proj, mlp.up_proj), (mlp.down_proj,)]
    return groups


def _product(linears: Any, rows: int, cast: torch.dtype | None) -> Callable[[Tensor], Tensor]:
    """Return linear layers, at their weights of now, as one product with about `rows` rows, in dtype `cast`."""
    weights = [m.weight.detach().to(cast or m.weight.dtype) for m in linears]
    weight = weights[0] if len(linears) == 1 else torch.cat(weights)
    biases = [m.weight.new_zeros(len(m.weight)) if m.bias is None else m.bias.detach() for m in linears]
    bias = torch.cat(biases).to(weight.dtype) if any(m.bias is not None for m in linears) else None
    if cast:
        return lambda x: F.linear(x.to(cast), weight, bias)
    packs = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    if weight.numel() < LARGE or not packs:
        return lambda x: F.linear(x, weight, bias)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


def _attend(query: Tensor, keys: Tensor, values: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    """Attend with one query per row [n, heads, size] over keys and values [n, key heads, longest, size].

    Returns [n, heads * size]. The queries of one key head are rows of one product: no key is copied for each of them.
    """
    n, heads, size = query.shape
    grouped = query.reshape(n, keys.shape[1], heads // keys.shape[1], size)
    scores = torch.matmul(grouped * scale, keys.transpose(-1, -2))  # [n, key heads, group, longest]
    if mask is not None:
        scores += mask
    wide = torch.promote_types(scores.dtype, torch.float32)
    return torch.matmul(scores.softmax(dim=-1, dtype=wide).to(values.dtype), values).reshape(n, heads * size)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions, x cos + (-x2, x1) sin; the first half of `sin` is negated already."""
    return (x * cos).addcmul_(x.roll(x.shape[-1] // 2, dims=-1), sin)


def _norm(module: Any, x: Tensor) -> Tensor:
    """Apply RMSNorm in float32 or wider, in few operations; the fused one is slower for few rows on a CPU."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    inverse = wide.square().mean(dim=-1, keepdim=True).add_(module.variance_epsilon).rsqrt_()
    return (wide * inverse).to(x.dtype).mul_(module.weight)
