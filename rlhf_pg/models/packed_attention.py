"""Attention over a `Tree`'s packed positions, in the place where transformers' models look up their attention.

A row's token attends to two blocks, its prompt (o1, l1) and its own row (o2, l2), o being the outputs and l the
logsumexps of the scores. Together, as if they had been one block (Dao et al. 2022, arXiv:2205.14135, section 3.1):

    l = log(exp l1 + exp l2)        o = exp(l1 - l) o1 + exp(l2 - l) o2

The backward pass of a fused kernel needs only o and l, so each block's gradient is the kernel's own, given the joint
ones. No prompt is repeated over its rows, not even its keys and values. That is for CPU kernels, which give l away;
elsewhere rows are padded beside a copy of their prompt's keys and go through the usual attention under a mask.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rlhf_pg.models.packing import Span, Tree

NAME = "tree_"  # before the name of the attention that everything but a tree goes through
BASES = ("sdpa", "eager")
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def base_of(config: Any) -> str:
    """The attention a model was loaded with, whether or not it also knows trees."""
    return str(config._attn_implementation).removeprefix(NAME)


def can_attend(model: PreTrainedModel) -> bool:
    """Whether the model's attention can be told of trees: every layer attends to all before it, through the usual
    interface, which hands on what it does not know."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ["full_attention"]
    plain = all(kind == "full_attention" for kind in kinds) and not getattr(config, "sliding_window", None)
    return plain and bool(getattr(model, "_supports_attention_backend", False)) and base_of(config) in BASES


def teach(model: PreTrainedModel) -> None:
    """Let the model's attention know trees; all else goes the way it went."""
    config = model.config.get_text_config()
    base = base_of(config)
    name = NAME + base
    if name not in ALL_ATTENTION_FUNCTIONS.valid_keys():
        ALL_ATTENTION_FUNCTIONS.register(name, _attention_beside(base))
        ALL_MASK_ATTENTION_FUNCTIONS.register(name, ALL_MASK_ATTENTION_FUNCTIONS[base])
    config._attn_implementation = name


def _attention_beside(base: str) -> Any:
    """The attention function of models that know trees."""

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **given: Any
    ) -> tuple[Tensor, Tensor | None]:
        tree: Tree | None = given.pop("tree", None)
        if tree is None:
            return _of_base(base, module)(module, query, key, value, attention_mask, **given)
        layer = int(module.layer_idx)  # pyright: ignore[reportArgumentType]
        tree.layers.add(layer)
        if tree.kept is not None:
            tree.kept[layer] = key, value
        scale, dropout = given.get("scaling") or query.shape[-1] ** -0.5, given.get("dropout", 0.0)
        prefix = tree.prefix.of_layer(layer) if tree.prefix else None
        return attend(query, key, value, tree, prefix, scale, dropout, fused=base != "eager"), None

    return attention


def _of_base(base: str, module: nn.Module) -> Any:
    """Eager attention is no entry of the table: each model's file has its own."""
    if base == "eager":
        return sys.modules[type(module).__module__].eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS[base]


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tree: Tree,
    prefix: tuple[Tensor, Tensor] | None,
    scale: float,
    dropout: float = 0.0,
    fused: bool = True,
) -> Tensor:
    """query [1, heads, T, size]; key and value [1, key heads, T, size] -> [1, T, heads, size].

    prefix: keys and values [1, key heads, P, size] of a prompt that went in before. Not `fused`, it can be
    differentiated twice.
    """
    if torch.is_autocast_enabled(query.device.type):
        kind = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(kind), key.to(kind), value.to(kind)
        prefix = (prefix[0].to(kind), prefix[1].to(kind)) if prefix else None
    if fused and query.device.type == "cpu" and not dropout:
        return _Blocks.apply(query, key, value, *(prefix or (None, None)), tree, scale)
    with sdpa_kernel(SDPBackend.MATH) if not fused else nullcontext():
        return _padded(query, key, value, tree, prefix, scale, dropout)


def _padded(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tree: Tree,
    prefix: tuple[Tensor, Tensor] | None,
    scale: float,
    dropout: float,
) -> Tensor:
    """Every branch beside a copy of its prompt's keys and values, under a mask; prompts one by one."""
    groups = query.shape[1] // key.shape[1]
    settings: dict[str, Any] = {"scale": scale, "dropout_p": dropout}
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    out = [
        F.scaled_dot_product_attention(query[:, :, a:b], key[:, :, a:b], value[:, :, a:b], is_causal=True, **settings)
        for a, b in tree.prompts
    ]
    if tree.branches:
        if prefix:
            key, value = (
                torch.cat([p.repeat_interleave(groups, dim=1), x], dim=2)
                for p, x in zip(prefix, (key, value), strict=True)
            )
        columns, seen = tree.padded_keys
        padded = _pad(query[0, :, tree.trunk :], tree)
        keys, values = (x[0][:, columns].transpose(0, 1) for x in (key, value))  # [branches, heads, P + width, size]
        made = F.scaled_dot_product_attention(padded, keys, values, attn_mask=seen, **settings)
        out.append(_unpad(made, tree))
    return torch.cat(out, dim=2).transpose(1, 2).contiguous()


class _Blocks(torch.autograd.Function):
    """The equations at the top of this file, by the fused CPU kernel."""

    @staticmethod
    def forward(ctx, query, key, value, prefix_key, prefix_value, tree, scale):
        _, heads, length, size = query.shape
        out = query.new_empty(1, length, heads, size).transpose(1, 2)  # [1, heads, T, size]
        wide = torch.promote_types(query.dtype, torch.float32)
        lse = torch.empty(1, length, heads, dtype=wide, device=query.device).transpose(1, 2)  # [1, heads, T]
        for a, b in tree.prompts:
            out[:, :, a:b], lse[:, :, a:b] = _flash(
                query[:, :, a:b], key[:, :, a:b], value[:, :, a:b], is_causal=True, scale=scale
            )
        if tree.branches:
            rows = slice(tree.trunk, length)
            own = (_pad(x[0, :, rows], tree) for x in (query, key, value))
            branch_out, branch_lse = _flash(*own, is_causal=True, scale=scale)
            branch_out, branch_lse = _unpad(branch_out, tree), _unpad(branch_lse[..., None], tree)[..., 0]
            for (a, b), keys, values in _trunks(tree, key, value, prefix_key, prefix_value):
                trunk_out, trunk_lse = _flash(query[:, :, a:b], keys, values, scale=scale)
                here = slice(a - tree.trunk, b - tree.trunk)
                both = torch.logaddexp(trunk_lse, branch_lse[:, :, here])
                share = (trunk_lse - both).exp()[..., None]
                torch.lerp(branch_out[:, :, here], trunk_out, share.to(out.dtype), out=out[:, :, a:b])
                lse[:, :, a:b] = both
        ctx.save_for_backward(query, key, value, prefix_key, prefix_value, out, lse)
        ctx.tree, ctx.scale = tree, scale
        return out.transpose(1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        query, key, value, prefix_key, prefix_value, out, lse = ctx.saved_tensors
        tree, scale, grad = ctx.tree, ctx.scale, grad.transpose(1, 2)
        to_query, to_key, to_value = (x.new_zeros(x.shape) for x in (query, key, value))
        to_prefix = [x.new_zeros(x.shape) for x in (prefix_key, prefix_value) if x is not None] or [None, None]
        for a, b in tree.prompts:
            s = (slice(None), slice(None), slice(a, b))
            made = _flash_backward(grad[s], query[s], key[s], value[s], out[s], lse[s], 0.0, True, scale=scale)
            to_query[s], to_key[s], to_value[s] = made
        if tree.branches:
            s = (slice(None), slice(None), slice(tree.trunk, None))
            own = [_pad(x[s][0], tree) for x in (grad, query, key, value, out)]
            made = _flash_backward(*own, _pad(lse[s][0, :, :, None], tree)[..., 0], 0.0, True, scale=scale)
            for total, padded in zip((to_query, to_key, to_value), made, strict=True):
                total[s] = _unpad(padded, tree)
            kept = (to_key, to_value, *to_prefix)
            for ((a, b), keys, values), (_, sum_keys, sum_values) in zip(
                _trunks(tree, key, value, prefix_key, prefix_value), _trunks(tree, *kept), strict=True
            ):
                s = (slice(None), slice(None), slice(a, b))
                made = _flash_backward(grad[s], query[s], keys, values, out[s], lse[s], 0.0, False, scale=scale)
                for total, part in zip((to_query[s], sum_keys, sum_values), made, strict=True):
                    total += part
        return to_query, to_key, to_value, *to_prefix, None, None


def _trunks(
    tree: Tree, key: Tensor, value: Tensor, prefix_key: Tensor | None, prefix_value: Tensor | None
) -> Iterator[tuple[Span, Tensor, Tensor]]:
    """For each prompt with branches: where they are, and views of its keys and values."""
    for number, rows in enumerate(tree.rows):
        if rows[0] == rows[1]:
            continue
        if prefix_key is not None and prefix_value is not None:
            yield rows, prefix_key, prefix_value
        else:
            a, b = tree.prompts[number]
            yield rows, key[:, :, a:b], value[:, :, a:b]


def _pad(x: Tensor, tree: Tree) -> Tensor:
    """Of the rows' tokens [heads, R, size] -> [branches, heads, width, size], zeros after each branch's end.

    Causal attention cannot see those from the tokens before them, so that no mask is needed.
    """
    tokens = x.transpose(0, 1)  # [R, heads, size]
    if not tree.regular:
        tokens = tokens.new_zeros(tree.branches * tree.width, *tokens.shape[1:]).index_copy_(0, tree.place, tokens)
    return tokens.reshape(tree.branches, tree.width, *tokens.shape[1:]).transpose(1, 2)


def _unpad(x: Tensor, tree: Tree) -> Tensor:
    """The other way: [branches, heads, width, size] -> [1, heads, R, size]."""
    tokens = x.transpose(1, 2).reshape(tree.branches * tree.width, x.shape[1], x.shape[3])
    if not tree.regular:
        tokens = tokens.index_select(0, tree.place)
    return tokens.transpose(0, 1)[None]
