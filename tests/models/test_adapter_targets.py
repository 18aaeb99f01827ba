"""model.lora.targets: names, several names, regular expressions, and what no module fits."""

from __future__ import annotations

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from rlhf_pg.config.recipe import Lora
from rlhf_pg.models.adapter import add_adapter
from tests.random_models import random_model


def adapted(targets: str | list[str], model=None) -> set[str]:
    """The last parts of the names of the modules that got an adapter."""
    model = add_adapter(model or random_model("llama"), Lora(rank=2, targets=targets))
    return {name.split(".lora_A")[0].rpartition(".")[2] for name, _ in model.named_parameters() if ".lora_A" in name}


@pytest.mark.parametrize(
    ("targets", "modules"),
    [
        ("q_proj", {"q_proj"}),
        ("q_proj,v_proj", {"q_proj", "v_proj"}),
        (" q_proj , v_proj ".strip(), {"q_proj", "v_proj"}),
        (["q_proj", "down_proj"], {"q_proj", "down_proj"}),
        ("mlp.gate_proj", {"gate_proj"}),
        (r".*self_attn\.(k|v)_proj", {"k_proj", "v_proj"}),
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
        (r".*\.wq", r"no module fits the regular expression"),
        (r"(q_proj", r"not a regular expression"),
    ],
)
def test_targets_that_no_module_has_are_refused_with_those_there_are(targets, message):
    with pytest.raises(ValueError, match=message):
        adapted(targets)


def test_layers_that_are_not_nn_linear_are_found_by_name_too():
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=20, n_positions=16))
    assert adapted("c_attn", gpt2) == {"c_attn"}
    with pytest.raises(ValueError, match=r"no module 'q_proj'.*c_attn"):
        adapted("q_proj", GPT2LMHeadModel(gpt2.config))
