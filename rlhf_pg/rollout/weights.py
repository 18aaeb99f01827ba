"""Named weights of a model: written over the live ones, or held in memory that two processes share."""

from __future__ import annotations

import copy
import mmap
import os
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

ALIGNED = 64  # bytes


def overwrite(model: nn.Module, tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Copy tensors over the live weights by state-dict name; returns the names.

    Raises ValueError, before anything is changed, for an unknown name or a wrong shape.
    """
    live = model.state_dict(keep_vars=True)
    new = list(tensors)
    for name, tensor in new:
        if name not in live:
            raise ValueError(f"the model has no weight {name!r}; it has {len(live)}, such as {next(iter(live))!r}")
        if live[name].shape != tensor.shape:
            raise ValueError(f"weight {name!r} is {list(live[name].shape)}, but {list(tensor.shape)} was given")
    with torch.no_grad():
        for name, tensor in new:
            live[name].copy_(tensor)
    return [name for name, _ in new]


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and buffer by name, tied ones once, under the first of their names."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


def structure_of(model: nn.Module) -> nn.Module:
    """Return a copy without storage (on the meta device), tied where the model is; no weight is copied for it."""
    memo: dict[int, object] = {}
    for tensor in tensors_of(model).values():
        empty = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(model, memo)


def fill(structure: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Make `tensors` (named as by `tensors_of`) the storage of a structure: nothing is copied."""
    empties = tensors_of(structure)  # held until the end: an id is that of a living object
    filled = {
        id(empty): nn.Parameter(tensors[name], requires_grad=False)
        if isinstance(empty, nn.Parameter)
        else tensors[name]
        for name, empty in empties.items()
    }
    for module in structure.modules():
        for attributes in (vars(module), vars(module)["_parameters"], vars(module)["_buffers"]):
            for name, value in attributes.items():
                if id(value) in filled:
                    attributes[name] = filled[id(value)]


class SharedWeights:
    """Weights in anonymous shared memory (memfd: Linux), which is freed when no process has it any more.

    `like`: tensors, of any device, meta included, whose names, shapes and dtypes it holds, one after the other, each at
    a multiple of ALIGNED bytes. `file`: the descriptor that another process inherited; None for new memory, all zeros.
    """

    def __init__(self, like: Mapping[str, Tensor], file: int | None = None) -> None:
        offsets, end = {}, 0
        for name, tensor in like.items():
            offsets[name] = end
            end += -(-tensor.numel() * tensor.element_size() // ALIGNED) * ALIGNED
        if file is None:
            file = os.memfd_create("rlhf_pg_weights")
            os.ftruncate(file, end)
        self.file = file
        memory = torch.frombuffer(mmap.mmap(file, end), dtype=torch.uint8)
        self.tensors: dict[str, Tensor] = {}
        for name, tensor in like.items():
            piece = memory[offsets[name] :][: tensor.numel() * tensor.element_size()]
            self.tensors[name] = piece.view(tensor.dtype).view(tensor.shape)

    @torch.no_grad()
    def write(self, live: Mapping[str, Tensor], names: Iterable[str]) -> None:
        """Copy these of the live tensors into the shared ones."""
        for name in names:
            self.tensors[name].copy_(live[name])
