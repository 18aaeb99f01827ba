"""What is exported opens elsewhere, in the dtype it came in, with the settings it came with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_pg.config.recipe import Lora
from rlhf_pg.models.adapter import add_adapter
from rlhf_pg.models.export import save_model, save_settings
from rlhf_pg.models.load import load_model, load_tokenizer
from rlhf_pg.models.tokenizer import character_tokenizer
from tests.random_models import random_model

REFUSED = {"temperature": 0.6, "top_p": 0.9, "eos_token_id": 1}  # transformers reads this and does not write it


def folder_of(path: Path, dtype: torch.dtype = torch.float32, kind: str = "llama") -> Path:
    tokenizer = character_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    random_model(kind, vocabulary=len(tokenizer)).to(dtype).save_pretrained(path)  # pyright: ignore
    tokenizer.save_pretrained(path)
    return path


def test_generation_settings_that_transformers_refuses_to_write_are_passed_on_as_they_came(tmp_path: Path):
    source = folder_of(tmp_path / "source")
    written = json.dumps(REFUSED, indent=7)
    (source / "generation_config.json").write_text(written)
    model, tokenizer = load_model(str(source)), load_tokenizer(str(source))
    with pytest.raises(ValueError):  # or this test is about nothing
        model.save_pretrained(tmp_path / "direct")
    settings = model.generation_config
    save_model(model, tokenizer, tmp_path / "model")
    assert (tmp_path / "model" / "generation_config.json").read_text() == written
    assert model.generation_config is settings
    save_settings(model, tokenizer, tmp_path / "settings")
    assert (tmp_path / "settings" / "generation_config.json").read_text() == written
    adapted = add_adapter(load_model(str(source)), Lora())
    save_model(adapted, tokenizer, tmp_path / "merged")
    assert (tmp_path / "merged" / "generation_config.json").read_text() == written


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])  # a head of its own, a tied one
@pytest.mark.parametrize("adapter", [False, True])
def test_an_export_has_the_dtype_that_the_files_had(tmp_path: Path, dtype: torch.dtype, kind: str, adapter: bool):
    source = folder_of(tmp_path / "source", dtype, kind)
    model = load_model(str(source))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_model(add_adapter(model, Lora()) if adapter else model, load_tokenizer(str(source)), tmp_path / "model")
    came, went = load_file(source / "model.safetensors"), load_file(tmp_path / "model" / "model.safetensors")
    assert came.keys() == went.keys()
    assert all(torch.equal(went[name], came[name]) and went[name].dtype == dtype for name in came)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == str(dtype).split(".")[1]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto")
    assert loaded.dtype == dtype
    assert adapter or all(torch.equal(model.state_dict()[name], before[name]) for name in before)  # the live model


def test_a_dtype_that_is_asked_for_is_written(tmp_path: Path):
    source = folder_of(tmp_path / "source", torch.bfloat16)
    save_model(load_model(str(source)), load_tokenizer(str(source)), tmp_path / "model", dtype=torch.float32)
    assert all(t.dtype == torch.float32 for t in load_file(tmp_path / "model" / "model.safetensors").values())
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == "float32"


def test_weights_that_were_trained_are_rounded_to_the_nearest(tmp_path: Path):
    source = folder_of(tmp_path / "source", torch.bfloat16)
    model = load_model(str(source))
    with torch.no_grad():
        model.lm_head.weight.fill_(1.003)  # bfloat16 has 1.0 and 1.0078125 near it
    save_model(model, load_tokenizer(str(source)), tmp_path / "model")
    head = load_file(tmp_path / "model" / "model.safetensors")["lm_head.weight"]
    assert torch.equal(head, torch.ones_like(head))


def test_the_tokenizer_of_an_export_has_the_template_and_the_tokens(tmp_path: Path):
    source = folder_of(tmp_path / "source")
    tokenizer = load_tokenizer(str(source))
    save_model(load_model(str(source)), tokenizer, tmp_path / "model")
    again = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert again.chat_template == tokenizer.chat_template != ""
    assert again.encode("1 + 2 = 3") == tokenizer.encode("1 + 2 = 3")
