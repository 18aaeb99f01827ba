"""What a run writes has the dtype of the files it came from, or the one asked for, also of a run that is over."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlhf_pg import config
from rlhf_pg.commands.run_sft import sft
from rlhf_pg.models.export import save_model
from rlhf_pg.models.load import tiny_model
from rlhf_pg.models.tokenizer import character_tokenizer
from tests.training import small_run


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "model"
    save_model(tiny_model(seed=0, vocabulary=99).to(torch.bfloat16), character_tokenizer(), folder)  # pyright: ignore
    assert dtypes(folder) == {torch.bfloat16}
    return folder


def dtypes(model: Path) -> set[torch.dtype]:
    assert json.loads((model / "config.json").read_text())["dtype"] == next(
        str(t.dtype).removeprefix("torch.") for t in load_file(model / "model.safetensors").values()
    )
    return {tensor.dtype for tensor in load_file(model / "model.safetensors").values()}


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_a_run_exports_in_the_dtype_that_came_and_then_in_another(tmp_path: Path, source: Path, capsys, lora):
    given = {"path": str(source), "lora": lora}
    small_run.run(tmp_path, model=given, log={"live": "on"})
    assert dtypes(tmp_path / "model") == {torch.bfloat16}
    shown = " ".join(capsys.readouterr().out.split())
    assert "weights rounded to bfloat16 (model.export_dtype: auto)" in shown
    came = load_file(source / "model.safetensors")
    rounded = load_file(tmp_path / "model" / "model.safetensors")
    assert came.keys() == rounded.keys()
    assert any(not torch.equal(came[name], rounded[name]) for name in came)  # it has learned

    small_run.run(tmp_path, model={**given, "export_dtype": "float32"}, run={"resume": "auto"})
    assert dtypes(tmp_path / "model") == {torch.float32}
    whole = load_file(tmp_path / "model" / "model.safetensors")
    assert all(torch.equal(whole[name].bfloat16(), rounded[name]) for name in whole)
    assert any(not torch.equal(whole[name], rounded[name].float()) for name in whole)  # more digits than were written


def test_a_cold_start_exports_in_the_dtype_that_came(tmp_path: Path, source: Path):
    raw = {
        "run": {"dir": str(tmp_path)},
        "model": {"path": str(source)},
        "data": {"train": {"task": "arithmetic", "options": {"count": 8}}},
        "log": {"live": "off"},
    }
    sft(config.parse(raw, config.SftRecipe))
    assert dtypes(tmp_path / "model") == {torch.bfloat16}


def test_the_embedded_model_is_exported_in_float32(tmp_path: Path):
    small_run.run(tmp_path, run={"steps": 1})
    assert dtypes(tmp_path / "model") == {torch.float32}
