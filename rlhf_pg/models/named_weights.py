"""A model's weights under the names of its checkpoint, adapters merged in: what an engine with a copy of its own takes,
and what an export holds. One tensor at a time.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

ADAPTER = re.compile(r"\.(?:base_layer|lora_\w+)\.")  # what PEFT puts between a module's name and its parameters'


def without_adapter(model: Any) -> Any:
    """The model itself, or the one that PEFT wrapped."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def module_of(name: str) -> str:
    """ "base_model.model.model.norm.weight" or "model.norm.weight" -> "model.norm"."""
    name = name.removeprefix("base_model.model.")
    return ADAPTER.split(name)[0] if ADAPTER.search(name) else name.rpartition(".")[0]


def with_packed(modules: Iterable[str], packed: Mapping[str, Sequence[str]]) -> set[str]:
    """The modules and, for each that an engine packs with others, those others."""
    wanted = set()
    for module in modules:
        above, _, leaf = module.rpartition(".")
        together = next((parts for parts in packed.values() if leaf in parts), [leaf])
        wanted |= {f"{above}.{part}" if above else part for part in together}
    return wanted


@torch.no_grad()
def weights(model: nn.Module, modules: Collection[str] | None = None) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of every weight, tied ones once; of `modules` only, if given. A tensor may be the live one."""
    base = without_adapter(model)
    given: set[int] = set()
    for name, module in base.named_modules():
        adapted = hasattr(module, "base_layer") and hasattr(module, "get_delta_weight")
        if ADAPTER.search(f".{name}.") or (modules is not None and name not in modules):
            continue
        tensors = _merged(module) if adapted else _own(module, given)
        yield from ((f"{name}.{leaf}" if name else leaf, tensor) for leaf, tensor in tensors)


def _own(module: nn.Module, given: set[int]) -> Iterator[tuple[str, Tensor]]:
    for leaf, parameter in module.named_parameters(recurse=False):
        if id(parameter) not in given:
            given.add(id(parameter))
            yield leaf, parameter.detach()
    for leaf, tensor in module.named_buffers(recurse=False):
        if leaf not in module._non_persistent_buffers_set:
            yield leaf, tensor


def _merged(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """An adapted layer's weights with the low-rank change added."""
    layer: nn.Module = module.base_layer  # pyright: ignore[reportAssignmentType]
    for leaf, parameter in layer.named_parameters(recurse=False):
        tensor = parameter.detach()
        if leaf == "weight":
            for adapter in module.active_adapters:  # pyright: ignore[reportGeneralTypeIssues]
                change: Tensor = module.get_delta_weight(adapter)  # pyright: ignore[reportCallIssue]
                tensor = tensor + change.to(tensor.dtype)
        yield leaf, tensor
