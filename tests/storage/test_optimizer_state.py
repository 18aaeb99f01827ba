"""An optimizer comes back exactly, by the names of its parameters."""

import copy
import json

import pytest
import torch
from torch import nn

from rlhf_pg.storage import checkpoint, optimizer_state


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def adamw(net: nn.Module, reverse: bool = False, **options) -> torch.optim.AdamW:
    """Weights with decay, biases without: two groups."""
    named = list(net.named_parameters())[:: -1 if reverse else 1]
    groups = [
        {"params": [p for n, p in named if n.endswith("weight")], "weight_decay": 0.1},
        {"params": [p for n, p in named if n.endswith("bias")], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, **{"lr": 0.01, "betas": (0.8, 0.95), **options})


def train(net: nn.Module, optimizer: torch.optim.Optimizer, scheduler, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        net(torch.randn(5, 3, generator=torch.Generator().manual_seed(step))).square().sum().backward()
        optimizer.step()
        scheduler.step()


def schedule(optimizer: torch.optim.Optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))


@pytest.mark.parametrize("options", [{}, {"amsgrad": True}])
@pytest.mark.parametrize("reverse", [False, True], ids=["same order", "other order"])
def test_a_restored_optimizer_goes_on_bit_for_bit(tmp_path, options, reverse):
    straight = model()
    optimizer = adamw(straight, **options)
    scheduler = schedule(optimizer)
    train(straight, optimizer, scheduler, range(3))

    tensors, numbers = optimizer_state.capture(optimizer, dict(straight.named_parameters()))
    groups = {"weights": straight.state_dict(), "optimizer": tensors}
    path = checkpoint.save(tmp_path, 3, groups, {"optimizer": numbers, "schedule": scheduler.state_dict()}, 1)
    train(straight, optimizer, scheduler, range(3, 6))

    resumed = model()
    second = adamw(resumed, reverse, lr=9.0, **options)
    second_schedule = schedule(second)
    loaded, state = checkpoint.load(path)
    resumed.load_state_dict(loaded["weights"])
    optimizer_state.restore(second, dict(resumed.named_parameters()), loaded["optimizer"], state["optimizer"])
    second_schedule.load_state_dict(state["schedule"])
    assert second.param_groups[0]["lr"] == pytest.approx(0.01 / 4)
    assert second.param_groups[0]["betas"] == (0.8, 0.95)
    train(resumed, second, second_schedule, range(3, 6))
    for name, parameter in straight.named_parameters():
        assert torch.equal(parameter, dict(resumed.named_parameters())[name]), name


def test_tensors_are_named_after_parameters_and_numbers_are_json():
    net = model()
    optimizer = adamw(net)
    train(net, optimizer, schedule(optimizer), range(1))
    tensors, numbers = optimizer_state.capture(optimizer, dict(net.named_parameters()))
    assert set(tensors) == {
        f"{key}/{layer}.{kind}"
        for key in ("step", "exp_avg", "exp_avg_sq")
        for layer in (0, 1)
        for kind in ("weight", "bias")
    }
    assert json.loads(json.dumps(numbers))["groups"][1]["params"] == ["0.bias", "1.bias"]


def test_a_learning_rate_that_is_a_tensor_stays_one():
    net = model()
    optimizer = adamw(net, lr=torch.tensor(0.25), foreach=False)
    tensors, numbers = optimizer_state.capture(optimizer, dict(net.named_parameters()))
    assert set(tensors) == {"group.0/lr", "group.1/lr"}
    other = adamw(net, lr=torch.tensor(0.5), foreach=False)
    optimizer_state.restore(other, dict(net.named_parameters()), tensors, numbers)
    assert [group["lr"] for group in other.param_groups] == [torch.tensor(0.25)] * 2


def test_an_optimizer_that_never_stepped_comes_back_fresh():
    net = model()
    used = adamw(net)
    saved = optimizer_state.capture(used, dict(net.named_parameters()))
    assert saved[0] == {}
    train(net, used, schedule(used), range(2))
    optimizer_state.restore(used, dict(net.named_parameters()), *saved)
    assert not used.state


def test_moments_keep_their_dtype_and_are_copies():
    weight = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = torch.optim.AdamW([weight])
    moments = {"exp_avg": torch.full((3,), 1 / 3), "exp_avg_sq": torch.full((3,), 1 / 7)}  # float32, of a bf16 weight
    optimizer.state[weight] = {"step": torch.tensor(5.0), **moments}
    tensors, numbers = optimizer_state.capture(optimizer, {"w": weight})
    optimizer_state.restore(optimizer, {"w": weight}, tensors, numbers)
    restored = optimizer.state[weight]
    assert restored["exp_avg"].dtype == torch.float32
    assert torch.equal(restored["exp_avg"], moments["exp_avg"])
    assert restored["exp_avg"].data_ptr() != moments["exp_avg"].data_ptr()
    assert restored["step"].item() == 5.0


def test_another_model_is_refused_before_anything_changes():
    net, other = model(), nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3))
    optimizer, other_optimizer = adamw(net), adamw(other)
    train(net, optimizer, schedule(optimizer), range(2))
    train(other, other_optimizer, schedule(other_optimizer), range(2))
    before = copy.deepcopy(other_optimizer.state_dict())
    tensors, numbers = optimizer_state.capture(optimizer, dict(net.named_parameters()))
    with pytest.raises(ValueError, match=r"1\.weight has shape \(2, 4\), the parameter here \(3, 4\)"):
        optimizer_state.restore(other_optimizer, dict(other.named_parameters()), tensors, numbers)
    renamed = {name.replace("0.", "x."): p for name, p in net.named_parameters()}
    with pytest.raises(ValueError, match=r"missing here \['0\.weight'\], not saved \['x\.weight'\]"):
        optimizer_state.restore(optimizer, renamed, tensors, numbers)
    with pytest.raises(ValueError, match="2 parameter groups, this one 1"):
        optimizer_state.restore(torch.optim.AdamW(net.parameters()), dict(net.named_parameters()), tensors, numbers)
    assert str(other_optimizer.state_dict()) == str(before)


def test_a_parameter_without_a_name_is_refused():
    net = model()
    with pytest.raises(ValueError, match=r"group 0 has a parameter of shape \(4, 3\)"):
        optimizer_state.capture(adamw(net), {"1.weight": net[1].weight})  # type: ignore[index]
