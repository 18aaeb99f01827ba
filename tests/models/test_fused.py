"""Norms and gated MLPs that keep less compute what transformers' own compute."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import MistralConfig, MistralForCausalLM, Qwen3Config, Qwen3ForCausalLM

from rlhf_pg.models.fused import _Gated, _RMSNorm, use_fused_layers
from tests.random_models import SHAPE, random_model
from tests.tolerance import allowance, in_float64

MODELS = ("qwen2", "llama", "qwen3", "mistral", "adapter")


def a_model(kind: str) -> Any:
    shape: dict[str, Any] = SHAPE | dict(vocab_size=23, max_position_embeddings=128)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        if kind == "qwen3":
            model: Any = Qwen3ForCausalLM(Qwen3Config(**shape, head_dim=12))
        elif kind == "mistral":
            model = MistralForCausalLM(MistralConfig(**shape, sliding_window=None))
        else:
            model = random_model("llama" if kind == "llama" else "qwen2")
        if kind == "adapter":
            model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def losses_and_gradients(model: nn.Module, autocast: bool = False) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    tokens = torch.arange(40).view(2, 20) % 23
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = model(input_ids=tokens).logits
    logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1).square().mean().backward()
    return logits.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def assert_as_near(gradients: dict[str, torch.Tensor], plain: dict[str, torch.Tensor], model: nn.Module) -> None:
    """Each gradient is as near to that in float64 as transformers' own is."""
    exact_model = in_float64(model)
    exact_model.zero_grad()
    _, exact = losses_and_gradients(exact_model)
    for name, gradient in exact.items():
        assert (gradients[name] - gradient).abs().max() <= allowance(plain[name], gradient), name


@pytest.mark.parametrize("kind", MODELS)
def test_logits_are_bitwise_transformers_own_and_gradients_equal(kind):
    model = a_model(kind)
    lean = copy.deepcopy(model)
    use_fused_layers(lean)
    changed = [m for m in lean.modules() if "forward" in vars(m)]
    assert {type(m).__name__[-3:] for m in changed} == {"orm", "MLP"}
    expected, expected_gradients = losses_and_gradients(model)
    actual, gradients = losses_and_gradients(lean)
    assert torch.equal(actual, expected)
    assert gradients.keys() == expected_gradients.keys()
    assert_as_near(gradients, expected_gradients, model)
    with torch.no_grad():
        assert torch.equal(lean(input_ids=torch.arange(9)[None]).logits, model(input_ids=torch.arange(9)[None]).logits)


def test_in_float64_gradients_are_transformers_own_to_ten_digits():
    model = a_model("qwen2").double()
    lean = copy.deepcopy(model)
    use_fused_layers(lean)
    _, expected_gradients = losses_and_gradients(model)
    _, gradients = losses_and_gradients(lean)
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=0, atol=1e-10 * float(gradient.abs().max()))


def test_under_autocast_logits_are_bitwise_transformers_own():
    model = a_model("qwen2")
    lean = copy.deepcopy(model)
    use_fused_layers(lean)
    expected, expected_gradients = losses_and_gradients(model, autocast=True)
    actual, gradients = losses_and_gradients(lean, autocast=True)
    assert torch.equal(actual, expected)
    assert_as_near(gradients, expected_gradients, model)


def test_first_and_second_derivatives_are_those_of_finite_differences():
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(3, 5, generator=g, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weight = torch.randn(5, generator=g, dtype=torch.float64, requires_grad=True)
    for function, inputs in ((lambda a, w: _RMSNorm.apply(a, w, 1e-3), (x, weight)), (_Gated.apply, (x, y))):
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("rows", [1, 7])
def test_an_mlp_keeps_gate_up_and_product_and_a_norm_its_input_and_one_number_a_row(rows):
    model = a_model("llama")
    use_fused_layers(model)
    layer = model.model.layers[0]
    hidden, wide = SHAPE["hidden_size"], SHAPE["intermediate_size"]
    x = torch.randn(rows, hidden, requires_grad=True)
    assert saved_bytes(layer.mlp, x) == 4 * rows * (hidden + 3 * wide)
    assert saved_bytes(layer.input_layernorm, x) == 4 * rows * (hidden + 1)


def saved_bytes(module: nn.Module, x: torch.Tensor) -> int:
    """Bytes of all tensors but weights that autograd holds on to."""
    weights = {p.untyped_storage().data_ptr() for p in module.parameters()}
    seen: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = module(x)
    assert output.requires_grad
    return sum(size for storage, size in seen.items() if storage not in weights)


def test_copies_and_pickles_use_their_own_weights():
    model = a_model("qwen2")
    use_fused_layers(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        norm = other.model.layers[0].input_layernorm
        norm.weight.data.mul_(2)
        x = torch.ones(1, SHAPE["hidden_size"], requires_grad=True)
        torch.testing.assert_close(norm(x), 2 * model.model.layers[0].input_layernorm(x))


def test_what_is_not_of_the_family_is_left_alone():
    model = nn.Sequential(nn.RMSNorm(4), nn.Linear(4, 4))
    use_fused_layers(model)
    assert not any("forward" in vars(module) for module in model.modules())
