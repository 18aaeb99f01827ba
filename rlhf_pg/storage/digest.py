"""The identity of weights: a sha256 that neither device nor memory layout changes, and one bit of a weight does."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


def weights_digest(named: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]) -> str:
    """Return the sha256 over name, dtype, shape and bytes of each tensor, in name order.

    At most one tensor at a time is copied to the CPU.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(dict(named).items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Return the elements in row-major order, little-endian; a contiguous CPU tensor is not copied."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)  # [numel]
    return flat.view(torch.uint8).numpy().data
