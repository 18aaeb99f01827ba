"""Named weights of a model: written over the live ones, or kept in memory that a second process shares.

offset 0       progress of the request under way: 3 int64
offset 64 ...  every distinct parameter and buffer of the model, in the order of `tensors_of`, each at a multiple of 64
"""

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
    given = list(tensors)
    for name, tensor in given:
        if name not in live:
            raise ValueError(f"the model has no weight {name!r}; it has {len(live)}, such as {next(iter(live))!r}")
        if live[name].shape != tensor.shape:
            raise ValueError(f"weight {name!r} is {list(live[name].shape)}, but {list(tensor.shape)} was given")
    with torch.no_grad():
        for name, tensor in given:
            live[name].copy_(tensor)
    return [name for name, _ in given]


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by name, tied ones once, under the first of their names."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


def structure_of(model: nn.Module) -> nn.Module:
    """A copy without storage (on the meta device), tied where the model is; no weight is copied on the way."""
    memo: dict[int, object] = {}
    for tensor in tensors_of(model).values():
        empty = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(model, memo)


def fill(structure: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Make `tensors` (named as by `tensors_of`) the storage of a structure: nothing is copied."""
    known = tensors_of(structure)  # kept alive: an id is of a living object
    real: dict[int, Tensor] = {}
    for name, empty in known.items():
        given = tensors[name]
        real[id(empty)] = nn.Parameter(given, requires_grad=False) if isinstance(empty, nn.Parameter) else given
    for module in structure.modules():
        for place in (vars(module), vars(module)["_parameters"], vars(module)["_buffers"]):
            for name, value in place.items():
                if id(value) in real:
                    place[name] = real[id(value)]


class SharedWeights:
    """Weights in anonymous shared memory (memfd: Linux), which is gone when the last process that has it is.

    `like`: the tensors, of any device, meta included, whose names, shapes and dtypes it holds. `file`: of the process
    that made it, None to make it. Fresh memory is zero.
    """

    def __init__(self, like: Mapping[str, Tensor], file: int | None = None) -> None:
        offsets, end = {}, ALIGNED
        for name, tensor in like.items():
            offsets[name] = end
            end += -(-tensor.numel() * tensor.element_size() // ALIGNED) * ALIGNED
        if file is None:
            file = os.memfd_create("rlhf_pg_weights")
            os.ftruncate(file, end)
        self.file = file
        memory = torch.frombuffer(mmap.mmap(file, end), dtype=torch.uint8)
        self.progress = memory[:24].view(torch.int64)  # [3]: rows done, rows in all, tokens sampled
        self.tensors: dict[str, Tensor] = {}
        for name, tensor in like.items():
            piece = memory[offsets[name] :][: tensor.numel() * tensor.element_size()]
            self.tensors[name] = piece.view(tensor.dtype).view(tensor.shape)

    @torch.no_grad()
    def write(self, live: Mapping[str, Tensor], names: Iterable[str]) -> None:
        """Copy these of the live tensors into the shared ones."""
        for name in names:
            self.tensors[name].copy_(live[name])
