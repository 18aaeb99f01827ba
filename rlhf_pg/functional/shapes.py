"""Shape checks: the first lines of every function here. Broadcasting is never relied on to make two shapes fit."""

import torch
from torch import Tensor


def same(**tensors: Tensor) -> None:
    """Raise ValueError, naming every shape, unless all the named tensors have one shape."""
    if len({tuple(t.shape) for t in tensors.values()}) > 1:
        listed = ", ".join(f"{name} {list(t.shape)}" for name, t in tensors.items())
        raise ValueError(f"shapes differ: {listed}; give them one shape")


def dims(expected: int, **tensors: Tensor) -> None:
    """Raise ValueError unless each named tensor has `expected` dimensions."""
    for name, tensor in tensors.items():
        if tensor.dim() != expected:
            raise ValueError(f"{name} has shape {list(tensor.shape)}; it must have {expected} dimension(s)")


def boolean(**tensors: Tensor) -> None:
    """Raise ValueError unless each named tensor is boolean: a 0/1 float mask would turn NaN * 0 into NaN."""
    for name, tensor in tensors.items():
        if tensor.dtype != torch.bool:
            raise ValueError(f"{name} has dtype {tensor.dtype}; it must be torch.bool (True = sampled by the policy)")


def lengths(mask: Tensor) -> Tensor:
    """Count each row's columns up to its last True, that one included, holes or not: mask [B, C] -> int64 [B]."""
    columns = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return (mask * columns).amax(dim=1)
