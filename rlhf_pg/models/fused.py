"""Norms and gated MLPs of the Llama family that save less for the backward pass and go through memory less often.

    RMSNorm       y = w n,  n = x r,  r = (mean x^2 + eps)^(-1/2)        saves x and r
                  dx = r (g - n mean(g n)),  g = w dy
    gated MLP     y = silu(a) b                                          saves a and b
                  da = dy b silu'(a),  db = dy silu(a)

Autograd by itself saves n and silu(a) too, a fifth of a layer's activations. Forward values are transformers' own, bit
for bit. Norms in float64 stay transformers' own, since it rounds them to float32 on the way.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlhf_pg.models.llama_family import in_llama_family


def use_fused_layers(model: nn.Module) -> None:
    """Replace the forward of the model's norms and MLPs, where they are the Llama family's and not replaced already."""
    for module in model.modules():
        name = type(module).__name__
        if "forward" in vars(module) or not in_llama_family(module):
            continue
        if name.endswith("RMSNorm"):
            module.forward = partial(_norm, module)
        elif name.endswith("MLP") and type(getattr(module, "act_fn", None)).__name__ in ("SiLUActivation", "SiLU"):
            module.forward = partial(_gated, module)


def _norm(module: Any, hidden_states: Tensor) -> Tensor:
    if hidden_states.dtype == torch.float64 or not torch.is_grad_enabled():
        return type(module).forward(module, hidden_states)
    return _RMSNorm.apply(hidden_states, module.weight, module.variance_epsilon)  # pyright: ignore[reportReturnType]


def _gated(module: Any, x: Tensor) -> Tensor:
    gate, up = module.gate_proj(x), module.up_proj(x)
    if not torch.is_grad_enabled():
        return module.down_proj(F.silu(gate).mul_(up))
    return module.down_proj(_Gated.apply(gate, up))


def _inverse_rms(wide: Tensor, eps: float) -> Tensor:
    return torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        inverse = _inverse_rms(wide, eps)
        ctx.save_for_backward(x, weight, inverse)
        ctx.eps = eps
        return weight * (wide * inverse).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        x, weight, inverse = ctx.saved_tensors
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if torch.is_grad_enabled():  # to be differentiated again
            inverse = _inverse_rms(wide, ctx.eps)
        normed = wide * inverse
        to_weight = (grad * normed).flatten(0, -2).sum(dim=0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, to_weight, None
        scaled = (grad * weight).to(wide.dtype)
        along = (scaled * normed).mean(dim=-1, keepdim=True)
        return torch.addcmul(scaled, normed, along, value=-1).mul(inverse).to(x.dtype), to_weight, None


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate, up):
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx, grad):
        gate, up = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again, which the fused derivative cannot be
            share = gate.sigmoid()
            return grad * up * share * (1 + gate * (1 - share)), grad * F.silu(gate)
        return torch.ops.aten.silu_backward(grad * up, gate), F.silu(gate).mul_(grad)
