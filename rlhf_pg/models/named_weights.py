"""A model's weights under the names of its checkpoint, adapters merged in, one tensor at a time.

An engine that holds a copy of the weights is sent these, and an export is written from them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

ADAPTER = re.compile(r"\.(?:base_layer|lora_\w+)\.")  # what PEFT puts between a module's name and its parameters'


def without_adapter(model: Any) -> Any:
    """Return the model that PEFT wrapped, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def module_of(name: str) -> str:
    """Return a parameter's module: "model.norm" for "base_model.model.model.norm.weight" and "model.norm.weight"."""
    name = name.removeprefix("base_model.model.")
    return ADAPTER.split(name)[0] if ADAPTER.search(name) else name.rpartition(".")[0]


def with_packed(modules: Iterable[str], packed: Mapping[str, Sequence[str]]) -> set[str]:
    """Return the modules and those that an engine packs with them (`packed`: "qkv_proj" -> ["q_proj", ...])."""
    names = set()
    for module in modules:
        above, _, leaf = module.rpartition(".")
        parts = next((parts for parts in packed.values() if leaf in parts), [leaf])
        names |= {f"{above}.{part}" if above else part for part in parts}
    return names


@torch.no_grad()
def weights(model: nn.Module, modules: Collection[str] | None = None) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) of every weight, tied ones once; only those of `modules` if given.

    A tensor may be the live one: copy what must outlast the next update.
    """
    base = without_adapter(model)
    yielded: set[int] = set()
    for name, module in base.named_modules():
        adapted = hasattr(module, "base_layer") and hasattr(module, "get_delta_weight")
        if ADAPTER.search(f".{name}.") or (modules is not None and name not in modules):
            continue
        tensors = _merged(module) if adapted else _direct(module, yielded)
        yield from ((f"{name}.{leaf}" if name else leaf, tensor) for leaf, tensor in tensors)


def _direct(module: nn.Module, yielded: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Yield a module's direct parameters, those in `yielded` (by id) aside, and its persistent buffers."""
    for leaf, parameter in module.named_parameters(recurse=False):
        if id(parameter) not in yielded:
            yielded.add(id(parameter))
            yield leaf, parameter.detach()
    for leaf, tensor in module.named_buffers(recurse=False):
        if leaf not in module._non_persistent_buffers_set:
            yield leaf, tensor


def _merged(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of an adapted layer with the low-rank change added."""
    layer: nn.Module = module.base_layer  # pyright: ignore[reportAssignmentType]
    for leaf, parameter in layer.named_parameters(recurse=False):
        tensor = parameter.detach()
        if leaf == "weight":
            for adapter in module.active_adapters:  # pyright: ignore[reportGeneralTypeIssues]
                change: Tensor = module.get_delta_weight(adapter)  # pyright: ignore[reportCallIssue]
                tensor = tensor + change.to(tensor.dtype)
        yield leaf, tensor
