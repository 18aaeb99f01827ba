"""Generation settings that transformers reads and does not write: checked, trained, resumed, imitated, evaluated."""

import json
from pathlib import Path

import pytest
from transformers import GenerationConfig, Qwen2Config

from rlhf_pg import cli, config
from rlhf_pg.models.export import save_model
from rlhf_pg.models.load import tiny_model
from rlhf_pg.models.tokenizer import character_tokenizer
from tests.training import small_run

WRITTEN = json.dumps({"eos_token_id": [1], "temperature": 0.6, "top_p": 0.95, "_from": "somebody"}, indent=7) + "\n"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    save_model(tiny_model(seed=0, vocabulary=99), character_tokenizer(), tmp_path / "source")
    (tmp_path / "source" / "generation_config.json").write_text(WRITTEN)
    with pytest.raises(ValueError):  # or this test is about nothing
        GenerationConfig.from_pretrained(tmp_path / "source").save_pretrained(tmp_path)
    return tmp_path / "source"


def recipe(folder: Path, source: Path) -> str:
    held_out = {"task": "arithmetic", "limit": 2}
    data = {"train": {"task": "arithmetic", "options": {"count": 24}}, "eval": held_out}
    model, measured = {"path": str(source)}, {"samples": 1, "k": [1]}
    given = small_run.recipe(
        folder, model=model, data=data, eval=measured, run={"steps": 1, "preflight": True}, rewards=[{"fn": "gsm8k"}]
    )
    (folder.parent / "recipe.yaml").write_text(config.dump(given))
    return str(folder.parent / "recipe.yaml")


def exported(folder: Path) -> str:
    return (folder / "model" / "generation_config.json").read_text()


def test_a_run_is_checked_trained_resumed_and_evaluated_and_passes_them_on(tmp_path: Path, source: Path, capsys):
    file = recipe(tmp_path / "run", source)
    assert cli.main(["check", file]) == 0
    assert cli.main(["train", file]) == 0
    assert exported(tmp_path / "run") == WRITTEN
    assert cli.main(["train", file, "run.steps=2", "run.resume=auto"]) == 0
    assert exported(tmp_path / "run") == WRITTEN
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 2
    assert cli.main(["eval", file, f"model.path={tmp_path / 'run' / 'model'}"]) == 0
    assert "invalid" not in capsys.readouterr().err


def cold_start(folder: Path, source: Path) -> str:
    raw = {
        "run": {"dir": str(folder)},
        "model": {"path": str(source)},
        "data": {"train": {"task": "arithmetic", "options": {"count": 8}}},
        "log": {"live": "off"},
    }
    (folder.parent / "sft.yaml").write_text(config.dump(config.parse(raw, config.SftRecipe)))
    return str(folder.parent / "sft.yaml")


def test_a_cold_start_passes_them_on(tmp_path: Path, source: Path):
    assert cli.main(["sft", cold_start(tmp_path / "run", source)]) == 0
    assert exported(tmp_path / "run") == WRITTEN


@pytest.mark.parametrize(("command", "written", "code"), [("train", recipe, 1), ("sft", cold_start, 2)])
def test_what_would_break_the_export_ends_a_run_before_its_first_step(
    tmp_path: Path, source: Path, monkeypatch, capsys, command, written, code
):
    def refuses(*unused, **named):
        raise TypeError("no JSON")

    monkeypatch.setattr(Qwen2Config, "to_json_file", refuses)
    assert cli.main([command, written(tmp_path / "run", source)]) == code
    said = " ".join(capsys.readouterr().err.split())
    assert f"config.json of {source} cannot be written (TypeError: no JSON)" in said
    assert "mend the file that is named" in said
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
