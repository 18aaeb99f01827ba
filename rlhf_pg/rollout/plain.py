"""A model's weights under the names of its checkpoint, adapters merged in: what an engine with a copy of its own takes.

One tensor at a time: of weights that are spread over processes, `whole` gathers those of one module and lets go of them
before the next.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

Whole = Callable[[list[nn.Parameter]], AbstractContextManager[object]]  # inside, these parameters have all their values

ADAPTER = re.compile(r"\.(?:base_layer|lora_\w+)\.")  # what PEFT puts between a module's name and its parameters'


def here(parameters: list[nn.Parameter]) -> AbstractContextManager[object]:
    """For parameters that are whole anyway."""
    return nullcontext()


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
def weights(
    model: nn.Module, whole: Whole = here, modules: Collection[str] | None = None
) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of every weight, tied ones once; of `modules` only, if given. A tensor may be the live one."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model  # pyright: ignore[reportCallIssue]
    given: set[int] = set()
    for name, module in base.named_modules():
        adapted = hasattr(module, "base_layer") and hasattr(module, "get_delta_weight")
        if ADAPTER.search(f".{name}.") or (modules is not None and name not in modules):
            continue
        tensors = _merged(module, whole) if adapted else _own(module, whole, given)
        yield from ((f"{name}.{leaf}" if name else leaf, tensor) for leaf, tensor in tensors)


def _own(module: nn.Module, whole: Whole, given: set[int]) -> Iterator[tuple[str, Tensor]]:
    named = dict(module.named_parameters(recurse=False))
    for leaf, parameter in named.items():
        if id(parameter) not in given:
            given.add(id(parameter))
            yield from _kept({leaf: parameter}, [parameter], whole)
    for leaf, tensor in module.named_buffers(recurse=False):
        if leaf not in module._non_persistent_buffers_set:
            yield leaf, tensor


def _merged(module: nn.Module, whole: Whole) -> Iterator[tuple[str, Tensor]]:
    """An adapted layer's weights with the low-rank change added."""
    layer: nn.Module = module.base_layer  # pyright: ignore[reportAssignmentType]
    with whole(list(module.parameters())):
        for leaf, parameter in layer.named_parameters(recurse=False):
            tensor = parameter.detach()
            if leaf == "weight":
                for adapter in module.active_adapters:  # pyright: ignore[reportGeneralTypeIssues]
                    change: Tensor = module.get_delta_weight(adapter)  # pyright: ignore[reportCallIssue]
                    tensor = tensor + change.to(tensor.dtype)
            yield leaf, tensor if whole is here or leaf == "weight" else tensor.clone()


def _kept(named: Mapping[str, Tensor], parameters: list[nn.Parameter], whole: Whole) -> Iterator[tuple[str, Tensor]]:
    """What was gathered is gone when `whole` ends, and a taker may look at a tensor later than that: a copy."""
    with whole(parameters):
        taken = {leaf: t.detach() if whole is here else t.detach().clone() for leaf, t in named.items()}
    yield from taken.items()
