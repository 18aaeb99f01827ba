"""A model folder that is incomplete or damaged is refused in one sentence that names the file and says what to do."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlhf_pg.models import folder
from rlhf_pg.models.load import load_config, load_model, load_tokenizer
from rlhf_pg.models.tokenizer import character_tokenizer
from tests.random_models import random_model

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n"
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tokenizer = character_tokenizer()
    random_model("llama", vocabulary=len(tokenizer)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def model(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "model"))


def refused(path: Path, load=load_model) -> str:
    with pytest.raises(ValueError) as caught:
        load(str(path))
    message = str(caught.value)
    assert "\n" not in message and len(message) < 800
    return message


def change(path: Path, edit) -> None:
    tensors = load_file(path / WEIGHTS)
    edit(tensors)
    save_file(tensors, path / WEIGHTS, metadata={"format": "pt"})


def test_a_complete_folder_loads(model: Path):
    assert load_model(str(model)).dtype == torch.float32
    assert len(load_tokenizer(str(model))) == 99


def test_weights_that_lack_a_tensor_are_refused_by_its_name(model: Path):
    change(model, lambda tensors: tensors.pop("lm_head.weight"))
    assert "lack 1 of the model's tensors: lm_head.weight." in refused(model)


def test_a_model_without_use_for_a_head_may_lack_it_and_nothing_else(model: Path):
    """As a critic that starts from a reward model."""
    change(model, lambda tensors: tensors.update({"score.weight": tensors.pop("lm_head.weight")[:1]}))
    load_model(str(model), head=False)
    change(model, lambda tensors: tensors.pop("model.norm.weight"))
    message = refused(model, lambda path: load_model(path, head=False))
    assert "lack 1 of the model's tensors: model.norm.weight;" in message


def test_weights_of_a_tied_head_are_complete_without_it(tmp_path: Path):
    random_model("qwen2").save_pretrained(tmp_path)  # writes no lm_head
    assert "lm_head.weight" not in load_file(tmp_path / WEIGHTS)
    load_model(str(tmp_path))


def test_weights_under_another_prefix_are_refused_with_the_names_of_both(model: Path):
    def rename(tensors):
        for name in list(tensors):
            tensors[f"policy.{name}"] = tensors.pop(name)

    change(model, rename)
    message = refused(model)
    assert "lm_head.weight" in message and "such as policy." in message


def test_a_tensor_of_another_size_is_refused_with_both_sizes(model: Path):
    change(model, lambda tensors: tensors.update({"model.norm.weight": torch.ones(31)}))
    assert "model.norm.weight [31] (the model's: [32])" in refused(model)


@pytest.mark.parametrize("keep", [0, 5, 0.5, -1])
def test_cut_weights_are_refused_by_the_name_of_the_file(model: Path, keep: float):
    content = (model / WEIGHTS).read_bytes()
    (model / WEIGHTS).write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    message = refused(model)
    assert WEIGHTS in message and "fetch it again" in message


@pytest.mark.parametrize(
    ("name", "load"),
    [
        (WEIGHTS, load_model),
        ("config.json", load_config),
        ("config.json", load_tokenizer),  # it reads which kind of tokenizer to load
        ("generation_config.json", load_config),  # transformers would take no notice, and not know where to stop
        ("tokenizer.json", load_tokenizer),
        ("tokenizer_config.json", load_tokenizer),
        ("special_tokens_map.json", load_tokenizer),
        ("chat_template.jinja", load_tokenizer),
    ],
)
def test_a_pointer_of_git_lfs_in_place_of_a_file_is_said_to_be_one(model: Path, name: str, load):
    (model / name).write_bytes(POINTER)
    message = refused(model, load)
    assert name in message and "git lfs pull" in message


@pytest.mark.parametrize(("name", "load"), [("config.json", load_config), ("tokenizer.json", load_tokenizer)])
@pytest.mark.parametrize("content", ['{"model_type": "lla', "", "[1, 2]"])
def test_broken_json_is_refused_by_the_name_of_the_file(model: Path, name: str, load, content: str):
    (model / name).write_text(content)
    assert str(model / name) in refused(model, load)


def test_a_missing_file_of_several_is_named(model: Path):
    names = list(load_file(model / WEIGHTS))
    (model / WEIGHTS).rename(model / "model-00001-of-00002.safetensors")
    shards = {name: f"model-0000{1 + (i > 3)}-of-00002.safetensors" for i, name in enumerate(names)}
    (model / folder.INDEX).write_text(json.dumps({"weight_map": shards}))
    assert "1 of 2 files of weights are missing" in refused(model)
    assert "model-00002-of-00002.safetensors" in refused(model)


def test_a_folder_of_pickles_is_refused(model: Path):
    (model / WEIGHTS).rename(model / "pytorch_model.bin")
    assert "pickle weights are not loaded" in refused(model)


def test_a_folder_without_tokenizer_files_says_so_and_names_the_key(model: Path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model / name).unlink(missing_ok=True)
    message = refused(model, load_tokenizer)
    assert "no tokenizer files" in message and "model.tokenizer" in message


@pytest.mark.parametrize("load", [load_tokenizer, load_config, load_model])
def test_an_adapter_in_place_of_a_model_is_said_to_be_one_and_of_what(tmp_path: Path, load):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}')
    message = refused(tmp_path, load)
    assert "a LoRA adapter, not a model" in message and "merge it into some/base" in message


def test_an_adapter_beside_a_model_is_not_put_on_silently(model: Path):
    (model / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}')
    assert "a LoRA adapter beside it" in refused(model)


@pytest.mark.parametrize("load", [load_tokenizer, load_config, load_model])
def test_a_folder_that_does_not_exist_is_said_so_with_the_nearest_there_is(model: Path, load):
    message = refused(model.with_name("modle") / "deeper", load)
    assert f"no such folder; did you mean '{model / 'deeper'}'?" in message


def test_a_name_that_may_be_one_of_the_hub_is_looked_for_there_and_the_nearest_folder_said(model: Path, monkeypatch):
    monkeypatch.chdir(model.parent)
    message = refused(Path("modle"), load_config)
    assert "did you mean 'model'?; it was looked for on the hub" in message


def test_a_file_in_place_of_a_folder_is_said_to_be_one(model: Path):
    assert "a file; name the folder that it is in" in refused(model / WEIGHTS, load_config)


def without_privileges(path: Path) -> str:
    """What the checks of a folder say in a process that may not read everything, as root may."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        with os.fdopen(reading) as said:
            text = said.read()
        os.waitpid(child, 0)
        return text
    if os.geteuid() == 0:
        os.setuid(65534)
    for check in (folder.check_tokenizer, folder.check_config, folder.check_weights):
        try:
            check(path)
        except Exception as error:
            os.write(writing, f"{type(error).__name__}: {error}\n".encode())
    os._exit(0)


@pytest.mark.parametrize("name", [".", "config.json", "tokenizer.json", WEIGHTS])
def test_what_may_not_be_read_is_named(original: Path, name: str):
    with tempfile.TemporaryDirectory() as place:  # the folders of pytest are their owner's alone
        Path(place).chmod(0o755)
        model = Path(shutil.copytree(original, Path(place) / "model"))
        model.chmod(0o755)
        for file in model.iterdir():
            file.chmod(0o644)
        (model / name).chmod(0)
        try:
            said = without_privileges(model).splitlines()
        finally:
            (model / name).chmod(0o755)
        assert said
        assert all(f"ValueError: {model / name}: cannot be read (Permission denied)" in line for line in said)


def test_a_kind_of_model_that_transformers_does_not_have_is_refused_with_its_reason(model: Path):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"model_type": "no_such_kind"}))
    assert "no_such_kind" in refused(model, load_config)


def test_the_dtype_of_a_folder_is_that_of_most_of_its_numbers(model: Path):
    assert folder.dtype_of(model) == torch.float32
    change(model, lambda t: t.update({n: x.bfloat16() for n, x in t.items() if "norm" not in n}))
    assert folder.dtype_of(model) == torch.bfloat16
    assert folder.dtype_of(model / "elsewhere") is None
