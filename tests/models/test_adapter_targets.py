"""model.lora.targets: names, several names, regular expressions, and what no module fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, Phi3Config, Phi3ForCausalLM

from rlhf_pg.config.recipe import Lora
from rlhf_pg.models.adapter import add_adapter
from rlhf_pg.models.export import save_model
from rlhf_pg.models.tokenizer import character_tokenizer
from tests.random_models import random_model
from tests.tolerance import in_float64, rounding


def adapted(targets: str | list[str], model=None) -> set[str]:
    """The last parts of the names of the modules that got an adapter."""
    model = add_adapter(model or random_model("llama"), Lora(rank=2, targets=targets))
    return {name.split(".lora_A")[0].rpartition(".")[2] for name, _ in model.named_parameters() if ".lora_A" in name}


@pytest.mark.parametrize(
    ("targets", "modules"),
    [
        ("q_proj", {"q_proj"}),
        ("q_proj,v_proj", {"q_proj", "v_proj"}),
        (" q_proj , v_proj, ", {"q_proj", "v_proj"}),
        ("q_proj v_proj", {"q_proj", "v_proj"}),
        ("q_proj|v_proj", {"q_proj", "v_proj"}),
        (["q_proj, v_proj"], {"q_proj", "v_proj"}),
        (["q_proj", ""], {"q_proj"}),
        (["q_proj", "down_proj"], {"q_proj", "down_proj"}),
        ("mlp.gate_proj", {"gate_proj"}),
        (r".*self_attn\.(k|v)_proj", {"k_proj", "v_proj"}),
        (r"model\.layers\.[01]\.mlp\.up_proj", {"up_proj"}),
        ("All-Linear", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        ("all-linear", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
    ],
)
def test_targets_are_names_or_a_regular_expression(targets, modules):
    assert adapted(targets) == modules


def test_a_name_means_every_module_of_that_name():
    model = add_adapter(random_model("llama"), Lora(rank=2, targets="q_proj"))
    assert sum(name.endswith("lora_A.default.weight") for name, _ in model.named_parameters()) == 2  # layers


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ("q_prj", r"no module 'q_prj'.*q_proj"),
        ("q_proj,nothing", r"no module 'nothing'.*linear layers of this model: down_proj, .*q_proj"),
        (["proj"], r"no module 'proj'"),  # a part of a name is not the name
        (
            r".*\.wq",
            r"no module fits the regular expression.*a whole name, such as model\.layers\.0\.",
        ),
        ("Q_PROJ", r"no module 'Q_PROJ'; did you mean 'q_proj'"),
        (
            "",
            r"names no module; .*: down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj$",
        ),
        ([], r"names no module"),
        ("self_attn", r"'self_attn' fits model\.layers\.0\.self_attn, a LlamaAttention, and adapters go on linear"),
        ("norm", r"a LlamaRMSNorm"),
        (r".*", r"fits the whole model, a LlamaForCausalLM"),
        (r"(q_proj", r"not a regular expression"),
    ],
)
def test_targets_that_no_module_has_are_refused_with_those_there_are(targets, message):
    with pytest.raises(ValueError, match=message) as caught:
        adapted(targets)
    assert "\n" not in str(caught.value)


def test_layers_that_are_not_nn_linear_are_found_by_name_too():
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=20, n_positions=16))
    assert adapted("c_attn", gpt2) == {"c_attn"}
    assert adapted("all-linear", GPT2LMHeadModel(gpt2.config)) == {"c_attn", "c_fc", "c_proj"}
    with pytest.raises(ValueError, match=r"no module 'q_proj'.*c_attn"):
        adapted("q_proj", GPT2LMHeadModel(gpt2.config))


def test_a_fused_layer_is_the_nearest_to_one_of_its_parts():
    shape: Any = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2)
    phi = Phi3ForCausalLM(Phi3Config(**shape, vocab_size=20, intermediate_size=32, pad_token_id=0, eos_token_id=0))
    with pytest.raises(ValueError, match=r"no module 'q_proj'; did you mean 'qkv_proj'.*, o_proj, qkv_proj"):
        adapted("q_proj", phi)
    assert adapted("qkv_proj", phi) == {"qkv_proj"}


@torch.no_grad()
@pytest.mark.parametrize("kind", ["gpt2", "phi3"])
def test_an_adapter_on_a_fused_or_transposed_layer_is_merged_into_the_export(kind: str, tmp_path: Path):
    shape: Any = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=99, eos_token_id=1)
    if kind == "gpt2":
        model: Any = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=99, n_positions=16))
    else:
        model = Phi3ForCausalLM(Phi3Config(**shape, num_key_value_heads=2, intermediate_size=32, pad_token_id=0))
    model = add_adapter(model.eval(), Lora(rank=2, targets="all-linear"))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    tokens = torch.tensor([[5, 9, 3, 40]])
    model = in_float64(model)  # a merged weight is rounded once more than one that is computed beside the adapter
    beside = model(input_ids=tokens).logits
    with model.disable_adapter():
        plain = model(input_ids=tokens).logits
    save_model(model, character_tokenizer(), tmp_path / "model", dtype=torch.float64)
    merged = in_float64(AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float64).eval())
    assert (merged(input_ids=tokens).logits - beside).abs().max() <= rounding(torch.float64, beside.abs().max(), 1000)
    assert (plain - beside).abs().max() > 1e-2
