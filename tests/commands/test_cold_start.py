"""`rlhf-pg train` makes the model that its recipe starts from, where that is not there yet."""

import json
from pathlib import Path

import pytest
from recipe_files import write

from rlhf_pg import config
from rlhf_pg.cli import main
from rlhf_pg.commands import cold_start
from rlhf_pg.config import RecipeError

SFT = """
run: {dir: elsewhere}
model: {path: tiny}
data: {train: {task: arithmetic, options: {count: 32}}}
sft: {epochs: 1, batch_size: 16}
"""
TRAIN = """
run: {dir: runs/r, steps: 1, preflight: false, cold_start: start.yaml}
model: {path: runs/start/model}
data: {train: {task: arithmetic, options: {count: 32}}}
rollout: {prompts_per_step: 2, samples_per_prompt: 2, max_new_tokens: 4}
rewards: [{fn: gsm8k}]
kl: {coefficient: 0}
"""


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(SFT, "recipes/start.yaml")
    write(TRAIN, "recipes/train.yaml")


def test_train_makes_the_model_once_with_its_own_seed(capsys):
    words = ["train", "recipes/train.yaml", "log.live=off", "run.seed=3"]
    assert main(words) == 0
    start = config.load_saved(Path("runs/start/config.yaml"), config.SftRecipe)
    assert start.run.seed == 3
    made = Path("runs/start/model/model.safetensors").stat().st_mtime_ns
    assert main([*words, "run.dir=runs/again"]) == 0
    assert Path("runs/start/model/model.safetensors").stat().st_mtime_ns == made
    assert len(Path("runs/again/metrics.jsonl").read_text().splitlines()) == 1


def test_rows_of_a_file_are_those_of_the_training_recipe():
    rows = [{"question": f"{n}+1", "answer": str(n + 1), "solution": f"={n + 1}"} for n in range(8)]
    write("\n".join(map(json.dumps, rows)), "rows.jsonl")
    task, source = "{task: arithmetic, options: {count: 32}}", "{path: %s, prompt: question, answer: answer}"
    write(TRAIN.replace(task, source % "rows.jsonl"), "recipes/train.yaml")
    write(SFT.replace(task, source % "absent.jsonl"), "recipes/start.yaml")
    assert main(["train", "recipes/train.yaml", "log.live=off"]) == 0
    assert "rows.jsonl" in Path("runs/start/config.yaml").read_text()


@pytest.mark.parametrize("command", ["check", "eval", "plan"])
def test_other_commands_say_what_makes_the_model(command, capsys):
    assert main([command, "recipes/train.yaml"]) == 2
    assert "model.path: no folder runs/start/model; rlhf-pg sft recipes/start.yaml makes it" in capsys.readouterr().err


def test_a_wrong_key_is_said_before_the_cold_start(capsys):
    assert main(["train", "recipes/train.yaml", "optimizer.lrr=1"]) == 2
    assert not Path("runs").exists()


def test_a_folder_that_no_cold_start_can_make_is_refused():
    with pytest.raises(RecipeError, match=r"no folder \./mine; one that run.cold_start makes is called .../model"):
        config.load("recipes/train.yaml", ["model.path=./mine"], makes_model=True)


def test_several_processes_are_told_to_make_it_first(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    recipe = config.load("recipes/train.yaml", makes_model=True)
    with pytest.raises(ValueError, match=r"make it first, on one process: rlhf-pg sft recipes/start\.yaml"):
        cold_start.make_model(recipe)
