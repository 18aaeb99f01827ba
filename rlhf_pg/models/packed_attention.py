"""Attention over the positions of a `PackedBatch`, registered where transformers' models look their attention up.

A row token attends to two blocks, its prompt (o1, l1) and its own row (o2, l2), o being the outputs and l the
logsumexps of the scores. The joint attention is (Dao et al. 2022, arXiv:2205.14135, section 3.1):

    l = log(exp l1 + exp l2)        o = exp(l1 - l) o1 + exp(l2 - l) o2

The backward pass of a fused kernel needs only o and l, so the gradient of each block is the kernel's own, given the
joint o and l. No prompt's keys and values are copied for its rows. This needs a kernel that returns l, as the CPU's
does; elsewhere each padded row gets a copy of its prompt's keys and values, and the usual attention runs under a mask.
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

from rlhf_pg.models.packing import PackedBatch, Span

PACKED = "packed_"  # + the name of the attention that runs when a forward is not packed
BASES = ("sdpa", "eager")
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def base_attention(config: Any) -> str:
    """Return the name of the attention a model was loaded with, also after `enable_packing`."""
    return str(config._attn_implementation).removeprefix(PACKED)


def supports_packing(model: PreTrainedModel) -> bool:
    """Return whether every layer attends to all earlier positions, through transformers' attention interface.

    That interface passes on keyword arguments it does not know, such as the layout.
    """
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    full = set(kinds) == {"full_attention"} if kinds else not getattr(config, "sliding_window", None)
    return full and bool(getattr(model, "_supports_attention_backend", False)) and base_attention(config) in BASES


def enable_packing(model: PreTrainedModel) -> None:
    """Let the model's forward take `packed=` (a `PackedBatch`); without it, attention is what it was before."""
    config = model.config.get_text_config()
    base = base_attention(config)
    name = PACKED + base
    if name not in ALL_ATTENTION_FUNCTIONS.valid_keys():
        ALL_ATTENTION_FUNCTIONS.register(name, _packed_or(base))
        ALL_MASK_ATTENTION_FUNCTIONS.register(name, ALL_MASK_ATTENTION_FUNCTIONS[base])
    config._attn_implementation = name


def _packed_or(base: str) -> Any:
    """Return the function to register: packed attention for a packed forward, else the attention named `base`."""

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        packed: PackedBatch | None = options.pop("packed", None)
        if packed is None:
            return _base_function(base, module)(module, query, key, value, attention_mask, **options)
        layer = int(module.layer_idx)  # pyright: ignore[reportArgumentType]
        packed.attended.add(layer)
        if packed.recorded is not None:
            packed.recorded[layer] = key, value
        scale, dropout = options.get("scaling") or query.shape[-1] ** -0.5, options.get("dropout", 0.0)
        prefix = packed.prefix.keys_values[layer] if packed.prefix else None
        return attend(query, key, value, packed, prefix, scale, dropout, fused=base != "eager"), None

    return attention


def _base_function(base: str, module: nn.Module) -> Any:
    """Return the attention function named `base`; eager is not in the table: each model's file has its own."""
    if base == "eager":
        return sys.modules[type(module).__module__].eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS[base]


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packed: PackedBatch,
    prefix: tuple[Tensor, Tensor] | None,
    scale: float,
    dropout: float = 0.0,
    fused: bool = True,
) -> Tensor:
    """Attend: query [1, heads, T, size], key and value [1, key heads, T, size] -> [1, T, heads, size].

    prefix: keys and values [1, key heads, P, size] of a prompt that was forwarded before. fused=False uses operations
    that can be differentiated twice.
    """
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        prefix = (prefix[0].to(dtype), prefix[1].to(dtype)) if prefix else None
    if fused and query.device.type == "cpu" and not dropout:
        return _BlockAttention.apply(query, key, value, *(prefix or (None, None)), packed, scale)
    with sdpa_kernel(SDPBackend.MATH) if not fused else nullcontext():
        return _padded_attention(query, key, value, packed, prefix, scale, dropout)


def _padded_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packed: PackedBatch,
    prefix: tuple[Tensor, Tensor] | None,
    scale: float,
    dropout: float,
) -> Tensor:
    """Attend prompt by prompt, then over all rows padded, each beside a copy of its prompt's keys, under a mask."""
    groups = query.shape[1] // key.shape[1]
    options: dict[str, Any] = {"scale": scale, "dropout_p": dropout}
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    out = [
        F.scaled_dot_product_attention(query[:, :, a:b], key[:, :, a:b], value[:, :, a:b], is_causal=True, **options)
        for a, b in packed.prompt_spans
    ]
    if packed.row_count:
        if prefix:
            key, value = (
                torch.cat([p.repeat_interleave(groups, dim=1), x], dim=2)
                for p, x in zip(prefix, (key, value), strict=True)
            )
        index, visible = packed.padded_keys
        rows = _pad(query[0, :, packed.rows_start :], packed)
        keys, values = (x[0][:, index].transpose(0, 1) for x in (key, value))  # [row_count, heads, P + width, size]
        padded = F.scaled_dot_product_attention(rows, keys, values, attn_mask=visible, **options)
        out.append(_unpad(padded, packed))
    return torch.cat(out, dim=2).transpose(1, 2).contiguous()


class _BlockAttention(torch.autograd.Function):
    """The equations at the top of this file, by the fused CPU kernel."""

    @staticmethod
    def forward(ctx, query, key, value, prefix_key, prefix_value, packed, scale):
        _, heads, length, size = query.shape
        out = query.new_empty(1, length, heads, size).transpose(1, 2)  # [1, heads, T, size]
        wide = torch.promote_types(query.dtype, torch.float32)
        lse = torch.empty(1, length, heads, dtype=wide, device=query.device).transpose(1, 2)  # [1, heads, T]
        for a, b in packed.prompt_spans:
            out[:, :, a:b], lse[:, :, a:b] = _flash(
                query[:, :, a:b], key[:, :, a:b], value[:, :, a:b], is_causal=True, scale=scale
            )
        if packed.row_count:
            start = packed.rows_start
            row_out, row_lse = _flash(
                *(_pad(x[0, :, start:], packed) for x in (query, key, value)), is_causal=True, scale=scale
            )
            row_out, row_lse = _unpad(row_out, packed), _unpad(row_lse[..., None], packed)[..., 0]
            for (a, b), keys, values in _prompt_blocks(packed, key, value, prefix_key, prefix_value):
                prompt_out, prompt_lse = _flash(query[:, :, a:b], keys, values, scale=scale)
                span = slice(a - start, b - start)
                joint = torch.logaddexp(prompt_lse, row_lse[:, :, span])
                share = (prompt_lse - joint).exp()[..., None]
                torch.lerp(row_out[:, :, span], prompt_out, share.to(out.dtype), out=out[:, :, a:b])
                lse[:, :, a:b] = joint
        ctx.save_for_backward(query, key, value, prefix_key, prefix_value, out, lse)
        ctx.packed, ctx.scale = packed, scale
        return out.transpose(1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        query, key, value, prefix_key, prefix_value, out, lse = ctx.saved_tensors
        packed, scale, grad = ctx.packed, ctx.scale, grad.transpose(1, 2)
        to_query, to_key, to_value = (x.new_zeros(x.shape) for x in (query, key, value))
        to_prefix = [x.new_zeros(x.shape) for x in (prefix_key, prefix_value) if x is not None] or [None, None]
        for a, b in packed.prompt_spans:
            s = (slice(None), slice(None), slice(a, b))
            to_query[s], to_key[s], to_value[s] = _flash_backward(
                grad[s], query[s], key[s], value[s], out[s], lse[s], 0.0, True, scale=scale
            )
        if packed.row_count:
            s = (slice(None), slice(None), slice(packed.rows_start, None))
            rows = [_pad(x[s][0], packed) for x in (grad, query, key, value, out)]
            gradients = _flash_backward(*rows, _pad(lse[s][0, :, :, None], packed)[..., 0], 0.0, True, scale=scale)
            for total, padded in zip((to_query, to_key, to_value), gradients, strict=True):
                total[s] = _unpad(padded, packed)
            for ((a, b), keys, values), (_, to_keys, to_values) in zip(
                _prompt_blocks(packed, key, value, prefix_key, prefix_value),
                _prompt_blocks(packed, to_key, to_value, *to_prefix),
                strict=True,
            ):
                s = (slice(None), slice(None), slice(a, b))
                gradients = _flash_backward(grad[s], query[s], keys, values, out[s], lse[s], 0.0, False, scale=scale)
                for total, gradient in zip((to_query[s], to_keys, to_values), gradients, strict=True):
                    total += gradient
        return to_query, to_key, to_value, *to_prefix, None, None


def _prompt_blocks(
    packed: PackedBatch, key: Tensor, value: Tensor, prefix_key: Tensor | None, prefix_value: Tensor | None
) -> Iterator[tuple[Span, Tensor, Tensor]]:
    """Yield, for each prompt whose rows have positions, the rows' span and views of the prompt's keys and values."""
    for number, rows in enumerate(packed.row_spans):
        if rows[0] == rows[1]:
            continue
        if prefix_key is not None and prefix_value is not None:
            yield rows, prefix_key, prefix_value
        else:
            a, b = packed.prompt_spans[number]
            yield rows, key[:, :, a:b], value[:, :, a:b]


def _pad(x: Tensor, packed: PackedBatch) -> Tensor:
    """Pad the rows: [heads, R, size] -> [row_count, heads, row_width, size], with zeros after the end of each row.

    Under causal attention no row token attends to what comes after it, so the zeros need no mask.
    """
    tokens = x.transpose(0, 1)  # [R, heads, size]
    if not packed.equal_rows:
        padded = tokens.new_zeros(packed.row_count * packed.row_width, *tokens.shape[1:])
        tokens = padded.index_copy_(0, packed.padded_index, tokens)
    return tokens.reshape(packed.row_count, packed.row_width, *tokens.shape[1:]).transpose(1, 2)


def _unpad(x: Tensor, packed: PackedBatch) -> Tensor:
    """Undo `_pad`: [row_count, heads, row_width, size] -> [1, heads, R, size]."""
    tokens = x.transpose(1, 2).reshape(packed.row_count * packed.row_width, x.shape[1], x.shape[3])
    if not packed.equal_rows:
        tokens = tokens.index_select(0, packed.padded_index)
    return tokens.transpose(0, 1)[None]
