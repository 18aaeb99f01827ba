"""Bad input fails before training, says what, where and what to do, and leaves nothing half done."""

import json
import os
from pathlib import Path

import pytest

from rlhf_pg import cli, config
from tests.training import small_run


def rows_file(folder: Path, text: str) -> Path:
    path = folder / "rows.jsonl"
    path.write_text(text)
    return path


GOOD = '{"q": "1+1=", "a": "2"}\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "{not json\n", r"rows\.jsonl:2"),
        ('{"q": "1+1="}\n', "no column 'a'|column.*a.*"),
        (GOOD + '{"q": "2+2=", "a": null}\n', r"rows\.jsonl:2"),
        ("", "no rows"),
        ('{"q": "' + "1" * 600 + '", "a": "2"}\n', "longer than"),
    ],
    ids=["corrupt line", "missing column", "null answer", "empty file", "prompt longer than the context"],
)
def test_data_that_cannot_be_trained_on_is_refused_by_file_and_line(tmp_path, text, message):
    source = {"path": str(rows_file(tmp_path, text)), "prompt": "q", "answer": "a", "template": "plain"}
    with pytest.raises(ValueError, match=message):
        small_run.run(tmp_path / "run", data={"train": source}, rollout={"prompts_per_step": 1})
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


PLUGINS = """
import time
def wrong_argument(completion, anser): return 1.0
def raises(completion): raise KeyError("no such thing")
def not_a_number(completion): return float("nan")
def text(completion): return "good"
def wrong_length(completions): return [1.0]
def hangs(completion): time.sleep(60)
"""


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("wrong_argument", "anser"),
        ("raises", "no such thing"),
        ("not_a_number", "nan"),
        ("text", "good|str"),
        ("wrong_length", "1 .*16|16 .*1"),
        ("hangs", "time|0.3"),
        ("absent", "absent"),
    ],
)
def test_a_plugin_that_fails_stops_the_run_by_name_and_is_never_a_zero(tmp_path, function, message):
    (tmp_path / "plugins.py").write_text(PLUGINS)
    rewards = [{"fn": f"{tmp_path / 'plugins.py'}:{function}", "timeout_s": 0.3}]
    with pytest.raises((ValueError, RuntimeError), match=message):
        small_run.run(tmp_path / "run", rewards=rewards)
    assert not (tmp_path / "run" / "summary.json").exists()


def test_one_sample_a_prompt_is_refused_for_grpo_with_the_reason(tmp_path):
    with pytest.raises(config.RecipeError, match=r"rollout.samples_per_prompt.*at least 2"):
        small_run.recipe(tmp_path, rollout={"samples_per_prompt": 1})


def test_two_runs_in_one_directory_are_refused_and_the_first_is_unharmed(tmp_path):
    small_run.run(tmp_path, run={"steps": 1})
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"run\.resume=auto"):
        small_run.run(tmp_path, run={"steps": 1})
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to a read-only folder")
def test_a_read_only_run_directory_is_refused_before_anything_is_loaded(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="write"):
        small_run.run(tmp_path / "run")


def test_a_run_directory_that_is_a_file_is_refused_with_exit_code_2(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(config.dump(small_run.recipe(tmp_path / "run")))
    assert cli.main(["train", str(recipe), f"run.dir={tmp_path / 'file'}"]) == 2
    assert "is a file" in capsys.readouterr().err


@pytest.mark.parametrize("pad", ["absent", "eos"])
def test_a_tokenizer_without_pad_token_or_with_pad_equal_to_eos_trains_on_eos(tmp_path, pad):
    small_run.run(tmp_path / "base", run={"steps": 0})
    settings = tmp_path / "base" / "model" / "tokenizer_config.json"
    values = json.loads(settings.read_text())
    values["pad_token"] = None if pad == "absent" else values["eos_token"]
    settings.write_text(json.dumps(values))
    small_run.run(
        tmp_path / "run", model={"path": str(tmp_path / "base" / "model")}, run={"steps": 1, "preflight": True}
    )
    assert (tmp_path / "run" / "summary.json").exists()
