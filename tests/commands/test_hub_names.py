"""A model or data set that cannot be had is answered at once, by every command, with its key and what may be meant."""

import os
import socket
import time
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import RepositoryNotFoundError

from rlhf_pg import cli, config
from rlhf_pg.training import hub

RECIPE = """
run: {dir: runs/x}
model: {path: some/model}
data: {train: {task: gsm8k}}
rewards: [gsm8k]
rollout: {server: runs/serve.json}
"""
SFT = "run: {dir: runs/x}\nmodel: {path: some/model}\ndata: {train: {task: gsm8k}}\n"
PATHS = ["data.train.path=rows.jsonl"]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)
    hub._ask.cache_clear()
    Path("recipe.yaml").write_text(RECIPE)
    Path("sft.yaml").write_text(SFT)
    Path("rows.jsonl").write_text('{"question": "1+1?", "answer": "#### 2"}\n')
    Path("runs/toy/model").mkdir(parents=True)
    Path("runs/toy/model/config.json").write_text("{}")


def answers(monkeypatch, answer):
    """Let the hub answer every question about a model or data set with `answer`, an exception or a value."""

    def ask(self, name, timeout):
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(HfApi, "model_info", ask)
    monkeypatch.setattr(HfApi, "dataset_info", ask)


def not_found():
    class Response:
        headers, status_code, request = {}, 404, None

    return RepositoryNotFoundError("404", response=Response())  # pyright: ignore[reportArgumentType]


def refused(capsys, *arguments):
    assert cli.main(list(arguments)) == cli.USAGE
    return capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "sft", "eval", "check", "plan", "serve", "variance"])
def test_every_command_names_the_keys_that_cannot_be_had_without_a_network(command, monkeypatch, capsys):
    answers(monkeypatch, ConnectionError("Name or service not known"))
    said = refused(capsys, command, "sft.yaml" if command == "sft" else "recipe.yaml")
    why = f"and the hub cannot be reached ({constants.ENDPOINT}: Name or service not known)"
    assert f"model.path: no folder some/model here, and no model of that name was downloaded before, {why}" in said
    expected = f"data.train.dataset: the data set openai/gsm8k was not downloaded before, {why}"
    assert (expected in said) == (command != "plan")
    assert not Path("runs/x").exists()


def test_a_hub_that_never_answers_is_waited_for_once(monkeypatch, capsys):
    monkeypatch.setattr(hub, "PATIENCE_S", 0.2)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{listening.getsockname()[1]}")
        began = time.monotonic()
        said = refused(capsys, "train", "recipe.yaml", "critic.backbone=null")
    assert time.monotonic() - began < 2
    assert "model.path: " in said and "data.train.dataset: " in said and "the hub cannot be reached" in said


def test_the_users_own_offline_switch_is_named(monkeypatch, capsys):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "the hub cannot be reached (HF_HUB_OFFLINE is set)" in refused(capsys, "train", "recipe.yaml", *PATHS)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("toy", "runs/toy/model"),
        ("toy/model", "runs/toy/model"),
        ("tooy", "runs/toy/model"),
        ("smolm2", "smollm2"),
        ("SmolLM2", "smollm2"),
        ("Tiny", "tiny"),
        ("some/model", None),
    ],
)
def test_a_name_that_the_hub_does_not_have_is_answered_with_the_one_meant(name, meant, monkeypatch, capsys):
    answers(monkeypatch, not_found())
    said = refused(capsys, "train", "recipe.yaml", f"model.path={name}", *PATHS)
    assert f"model.path: no model {name} on the hub and no folder {name} here" in said
    assert said.strip().endswith("(hf auth login)" + (f"; did you mean {meant!r}?" if meant else ""))


def test_the_other_keys_that_name_a_model_are_named_too(monkeypatch, capsys):
    answers(monkeypatch, not_found())
    options = ["algorithm.name=ppo", "critic.backbone=critics/one", "model.tokenizer=other/tokenizer"]
    said = refused(capsys, "train", "recipe.yaml", "model.path=tiny", *options, *PATHS)
    assert [line.split(":")[0].strip() for line in said.splitlines()[1:]] == ["model.tokenizer", "critic.backbone"]


def test_a_data_set_is_asked_for_once_and_both_its_keys_are_named(monkeypatch, capsys):
    answers(monkeypatch, not_found())
    said = refused(capsys, "train", "recipe.yaml", "model.path=tiny", "data.eval.split=test")
    assert "data.train.dataset and data.eval.dataset: no data set openai/gsm8k on the hub" in said
    said = refused(capsys, "train", "recipe.yaml", "model.path=tiny", "data.train.dataset=rows.jsonl")
    assert "it is a file here: give it as data.train.path" in said


def test_what_the_hub_has_is_not_asked_for_again_and_nothing_local_is_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr(HfApi, "model_info", lambda self, name, timeout: asked.append(name))
    recipe = config.load("recipe.yaml", PATHS)
    hub.require(recipe)
    hub.require(recipe)
    for path in ("tiny", "smollm2", "runs/toy/model"):
        hub.require(config.load("recipe.yaml", [f"model.path={path}", *PATHS]))
    assert asked == ["some/model"]


def test_without_a_network_what_was_downloaded_is_used_and_nobody_asks_again(monkeypatch, capsys):
    answers(monkeypatch, ConnectionError("no route"))
    snapshot = Path("cache/models--some--model/snapshots/1")
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    refs = Path("cache/models--some--model/refs")
    refs.mkdir()
    (refs / "main").write_text("1")
    hub.require(config.load("recipe.yaml", PATHS))
    assert constants.is_offline_mode() and os.environ["HF_HUB_OFFLINE"] == "1"
    assert "no route): what was downloaded before is used" in capsys.readouterr().err
    with pytest.raises(config.RecipeError, match=r"model\.path: no folder another/model here"):
        hub.require(config.load("recipe.yaml", ["model.path=another/model", *PATHS]))


def test_a_runs_folder_and_misspelt_paths_are_answered_before_the_hub_is_asked(capsys):
    for path, says in {
        "runs/toy": "runs/toy is a run's folder, not a model's; did you mean 'runs/toy/model'?",
        "./runs/toy": "./runs/toy is a run's folder, not a model's; did you mean './runs/toy/model'?",
        "runs/toi/model": "no folder runs/toi/model; did you mean 'runs/toy/model'?",
        "runs/toy/modle": "no folder runs/toy/modle; did you mean 'runs/toy/model'?",
    }.items():
        for key in ("model.path", "model.tokenizer"):
            assert f"{key}: {says}" in refused(capsys, "train", "recipe.yaml", f"{key}={path}", *PATHS)
    assert f"data.train.path: no file row.jsonl in {Path.cwd()}; did you mean 'rows.jsonl'?" in refused(
        capsys, "train", "recipe.yaml", "data.train.path=row.jsonl"
    )
