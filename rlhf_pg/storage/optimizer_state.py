"""An optimizer's state by parameter name, as tensors + JSON: no pickle, and no dependence on parameter order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def capture(optimizer: torch.optim.Optimizer, named: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return (tensors, JSON): state and param_groups of an optimizer by parameter name instead of position.

    `named` names every optimized parameter (`dict(model.named_parameters())`). Tensors are "exp_avg/<parameter>",
    "step/<parameter>", "group.<index>/lr"; they are the live ones, not copies. Numbers go into the JSON.
    Raises ValueError for a parameter without a name.
    """
    names = {id(parameter): name for name, parameter in named.items()}
    tensors: dict[str, Tensor] = {}
    state: dict[str, dict[str, Any]] = {}
    groups: list[dict[str, Any]] = []
    for index, group in enumerate(optimizer.param_groups):
        options = {key: value for key, value in group.items() if key != "params"}
        numbers = _split(options, f"group.{index}/{{}}", tensors)
        for parameter in group["params"]:
            if id(parameter) not in names:
                shape = tuple(parameter.shape)
                raise ValueError(f"optimizer group {index} has a parameter of shape {shape} that `named` does not name")
        members = [names[id(parameter)] for parameter in group["params"]]
        groups.append({"params": members, "options": numbers})
        for name, parameter in zip(members, group["params"], strict=True):
            if parameter in optimizer.state:
                state[name] = _split(optimizer.state[parameter], f"{{}}/{name}", tensors)
    return tensors, {"groups": groups, "state": state}


def restore(
    optimizer: torch.optim.Optimizer,
    named: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    saved: Mapping[str, Any],
) -> None:
    """Undo `capture`: afterwards the optimizer steps exactly as the saved one would.

    Moments keep their saved dtype and go to their parameter's device. Raises ValueError, before anything is changed,
    when groups, parameter names or shapes are not those saved. (torch's set_optimizer_state_dict casts moments to the
    parameter's dtype and accepts other groups and shapes.)
    """
    names = {id(parameter): name for name, parameter in named.items()}
    _check_same_groups(optimizer, names, saved["groups"])
    parameters = {names[id(p)]: p for group in optimizer.param_groups for p in group["params"]}
    parameter_tensors: dict[str, dict[str, Tensor]] = {}
    group_tensors: dict[str, dict[str, Tensor]] = {}
    for path, tensor in tensors.items():
        key, name = path.split("/", 1)
        if key.startswith("group."):
            group_tensors.setdefault(key, {})[name] = tensor
        else:
            _check_shape(path, tensor, parameters[name])
            parameter_tensors.setdefault(name, {})[key] = tensor
    for index, group in enumerate(optimizer.param_groups):
        options: dict[str, Any] = dict(saved["groups"][index]["options"])
        options.update({key: t.clone() for key, t in group_tensors.get(f"group.{index}", {}).items()})
        for key, value in options.items():
            group[key] = tuple(value) if isinstance(group.get(key), tuple) else value
        step_on_device = bool(group.get("capturable") or group.get("fused"))
        for parameter in group["params"]:
            name = names[id(parameter)]
            optimizer.state.pop(parameter, None)
            if name in saved["state"]:
                tensors_here = {
                    key: t.to("cpu" if key == "step" and not step_on_device else parameter.device, copy=True)
                    for key, t in parameter_tensors.get(name, {}).items()
                }
                optimizer.state[parameter] = {**tensors_here, **saved["state"][name]}


def _split(values: Mapping[str, Any], path: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Put the tensors among `values` into `tensors` under `path`; return the other values."""
    numbers = {}
    for key, value in values.items():
        if isinstance(value, Tensor):
            tensors[path.format(key)] = value
        else:
            numbers[key] = value
    return numbers


def _check_same_groups(optimizer: torch.optim.Optimizer, names: Mapping[int, str], saved: list[dict[str, Any]]) -> None:
    if len(saved) != len(optimizer.param_groups):
        raise ValueError(f"saved optimizer has {len(saved)} parameter groups, this one {len(optimizer.param_groups)}")
    for index, group in enumerate(optimizer.param_groups):
        current = {names.get(id(p), f"<unnamed {tuple(p.shape)}>") for p in group["params"]}
        expected = set(saved[index]["params"])
        if current != expected:
            raise ValueError(
                f"optimizer group {index} is not the saved one: missing here {sorted(expected - current)[:3]}, "
                f"not saved {sorted(current - expected)[:3]}; "
                "resume with the model and optimizer settings of the saved run"
            )


def _check_shape(path: str, tensor: Tensor, parameter: Tensor) -> None:
    if tensor.numel() != 1 and tensor.shape != parameter.shape:
        shapes = f"{tuple(tensor.shape)}, the parameter here {tuple(parameter.shape)}"
        raise ValueError(f"saved optimizer tensor {path} has shape {shapes}; resume with the saved run's model")
