"""A run leaves a card in its model folder and in its adapter's, and nothing of it can lose the model."""

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from rlhf_pg import config
from rlhf_pg.commands import export_card
from rlhf_pg.commands.run_sft import sft
from rlhf_pg.commands.run_training import train
from rlhf_pg.training.launch_facts import without_secrets


def recipe(folder: Path, **model):
    return config.parse(
        {
            "run": {"dir": str(folder), "steps": 1, "preflight": False},
            "model": {"path": "tiny", **model},
            "data": {
                "train": {"task": "arithmetic", "options": {"count": 8}},
                "eval": {"task": "arithmetic", "options": {"count": 4}},
            },
            "rollout": {"prompts_per_step": 2, "samples_per_prompt": 2, "max_new_tokens": 4},
            "rewards": [{"fn": "gsm8k"}],
            "eval": {"samples": 1, "k": [1]},
            "log": {"live": "off"},
        }
    )


def test_a_run_leaves_a_card_beside_the_weights_and_one_beside_the_adapter(tmp_path):
    assert train(recipe(tmp_path / "r", lora={"rank": 2})) == 0
    for folder, library in (("model", "transformers"), ("adapter", "peft")):
        made = ModelCard.load(tmp_path / "r" / folder / "README.md")
        assert made.data.to_dict()["library_name"] == library
        assert "| pass@1 |" in made.text and "trained by grpo on the task `arithmetic`" in made.text
        assert (tmp_path / "r" / folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    modes = {file.stat().st_mode for name in ("model", "adapter") for file in (tmp_path / "r" / name).iterdir()}
    assert modes == {(tmp_path / "r" / "metrics.jsonl").stat().st_mode}


def test_a_cold_start_leaves_one_too(tmp_path):
    raw = {
        "run": {"dir": str(tmp_path / "s")},
        "model": {"path": "tiny"},
        "data": {"train": {"task": "arithmetic", "options": {"count": 8}}},
        "log": {"live": "off"},
    }
    assert sft(config.parse(raw, config.SftRecipe)) == 0
    made = ModelCard.load(tmp_path / "s" / "model" / "README.md")
    assert made.data.to_dict()["tags"] == ["rlhf_pg", "sft"]
    assert "](curves.png)" in made.text


def test_a_card_that_cannot_be_made_costs_a_warning_and_not_the_model(tmp_path, monkeypatch, capsys):
    def broken(*unused, **named):
        raise RuntimeError("no font")

    monkeypatch.setattr(export_card.model_card, "files", broken)
    assert train(recipe(tmp_path / "r")) == 0
    assert "warning: no model card: RuntimeError: no font" in capsys.readouterr().err
    assert (tmp_path / "r" / "model" / "model.safetensors").is_file()
    assert json.loads((tmp_path / "r" / "summary.json").read_text())["steps"] == 1


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("  api_key: abc", "  api_key: '***'"),
        ("  wandb.token: abc", "  wandb.token: '***'"),
        ("  url: https://me:pw@host/x", "  url: https://***@host/x"),
        ("  note: hf_abcdefghijklmnop", "  note: ***"),
        ("  max_new_tokens: 4", "  max_new_tokens: 4"),
        ("  token: null", "  token: null"),
    ],
)
def test_what_looks_like_a_secret_is_not_in_the_cards_recipe(line, shown):
    assert without_secrets(f"a: 1\n{line}\nb: 2") == f"a: 1\n{shown}\nb: 2"
