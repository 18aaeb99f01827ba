"""What is exported opens elsewhere, in the dtype it came in, with the settings it came with."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from rlhf_pg.config.recipe import Lora
from rlhf_pg.models.adapter import add_adapter
from rlhf_pg.models.export import _write_dtype, faults, save_model
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
    assert faults(model, tokenizer, ["1 + 1 ="]) == []
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


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_weights_that_were_gathered_from_several_processes_are_written_in_it_too(tmp_path: Path, kind: str):
    source = folder_of(tmp_path / "source", torch.bfloat16, kind)
    model, tokenizer = load_model(str(source)), load_tokenizer(str(source))
    gathered = {name: tensor.detach() + 1 for name, tensor in model.named_parameters()}
    assert save_model(model, tokenizer, tmp_path / "model", gathered) == torch.bfloat16
    came, went = load_file(source / "model.safetensors"), load_file(tmp_path / "model" / "model.safetensors")
    assert came.keys() == went.keys()
    assert all(torch.equal(went[name], (came[name].float() + 1).bfloat16()) for name in came)


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


def test_the_files_of_a_tokenizer_are_passed_on_as_they_came(tmp_path: Path):
    """Also fields that transformers does not know, and a template inside tokenizer_config.json, which it would move."""
    source = folder_of(tmp_path / "source")
    settings = json.loads((source / "tokenizer_config.json").read_text())
    settings |= {"chat_template": "{{ messages[0].content }}!", "model_max_length": 77, "somebodys_field": [1, 2]}
    (source / "tokenizer_config.json").write_text(json.dumps(settings, indent=5))
    (source / "chat_template.jinja").unlink()
    (source / "special_tokens_map.json").write_text('{"eos_token":   "<eos>"}')
    (source / "notes.txt").write_text("of nobody's concern")
    tokenizer = load_tokenizer(str(source))
    save_model(load_model(str(source)), tokenizer, tmp_path / "model")
    of_tokenizer = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
    assert all((tmp_path / "model" / name).read_bytes() == (source / name).read_bytes() for name in of_tokenizer)
    written = {*of_tokenizer, "config.json", "generation_config.json", "model.safetensors"}
    assert {file.name for file in (tmp_path / "model").iterdir()} == written
    assert AutoTokenizer.from_pretrained(tmp_path / "model").chat_template == "{{ messages[0].content }}!"


def test_several_chat_templates_are_passed_on(tmp_path: Path):
    source = folder_of(tmp_path / "source")
    tokenizer = character_tokenizer()
    tokenizer.chat_template = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    tokenizer.save_pretrained(source)
    save_model(load_model(str(source)), load_tokenizer(str(source)), tmp_path / "model")
    assert AutoTokenizer.from_pretrained(tmp_path / "model").chat_template == tokenizer.chat_template


def test_what_came_is_exported_though_the_folder_it_came_from_is_gone(tmp_path: Path):
    source = folder_of(tmp_path / "source", torch.bfloat16)
    came = {file.name: file.read_bytes() for file in source.iterdir() if file.name.startswith(("tok", "gen"))}
    model, tokenizer = load_model(str(source)), load_tokenizer(str(source))
    shutil.rmtree(source)
    save_model(model, tokenizer, tmp_path / "model")
    assert all((tmp_path / "model" / name).read_bytes() == content for name, content in came.items())


def test_generation_settings_inside_config_json_are_exported_in_their_own_file(tmp_path: Path):
    """As old folders have them, which have no generation_config.json: transformers would write neither."""
    source = folder_of(tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"temperature": 0.6, "top_k": 5}))
    (source / "generation_config.json").unlink()
    model, tokenizer = load_model(str(source)), load_tokenizer(str(source))
    assert faults(model, tokenizer, ["1"]) == []
    save_model(model, tokenizer, tmp_path / "model")
    written = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    assert (written["temperature"], written["top_k"]) == (0.6, 5)
    AutoModelForCausalLM.from_pretrained(tmp_path / "model")


def test_what_cannot_be_written_is_said_by_the_name_of_its_file(tmp_path: Path):
    source = folder_of(tmp_path / "source")
    model, tokenizer = load_model(str(source)), load_tokenizer(str(source))
    model.config.strange = object()
    [fault] = faults(model, tokenizer, ["1"])
    assert fault.startswith(f"config.json of {source} cannot be written (TypeError: ")


def test_a_tokenizer_that_is_another_one_beside_this_model_is_said(tmp_path: Path):
    """A class that the tokenizer's own folder chooses, and the model's config.json overrules."""
    source = folder_of(tmp_path / "source", kind="qwen2")
    words = tmp_path / "words"
    backend = Tokenizer(models.WordLevel({"<eos>": 0, "1": 1, "+": 2, "=": 3, "?": 4}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", unk_token="?").save_pretrained(words)
    tokenizer = load_tokenizer(str(words))
    assert tokenizer.encode("1 + 1 =") == [1, 2, 1, 3]
    wrong = faults(load_model(str(source)), tokenizer, ["1 + 1 ="])
    assert wrong and all(str(words) in fault and "as written" in fault for fault in wrong)


def test_the_parts_of_a_configuration_name_the_dtype_too(tmp_path: Path):
    file = tmp_path / "config.json"
    file.write_text('{"dtype": "float32", "text_config": {"dtype": "float32", "hidden_size": 8}, "rope": {"theta": 1}}')
    _write_dtype(file, torch.bfloat16)
    parts = {"text_config": {"dtype": "bfloat16", "hidden_size": 8}, "rope": {"theta": 1}}
    assert json.loads(file.read_text()) == {"dtype": "bfloat16", **parts}


FROM_THE_HUB = """
import sys
from pathlib import Path
from rlhf_pg.models.export import save_model
from rlhf_pg.models.load import load_model, load_tokenizer
save_model(load_model("some/model"), load_tokenizer("some/model"), Path(sys.argv[1]))
"""


def test_a_model_of_the_hub_is_exported_as_it_came_too(tmp_path: Path):
    cache = tmp_path / "models--some--model"
    source = folder_of(cache / "snapshots" / "0123456789012345678901234567890123456789", torch.bfloat16)
    (source / "generation_config.json").write_text(json.dumps(REFUSED, indent=7))
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(source.name)
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", FROM_THE_HUB, str(tmp_path / "model")], env=environment, check=True)
    written = tmp_path / "model"
    assert {t.dtype for t in load_file(written / "model.safetensors").values()} == {torch.bfloat16}
    for name in ("generation_config.json", "tokenizer_config.json", "tokenizer.json"):
        assert (written / name).read_bytes() == (source / name).read_bytes()
