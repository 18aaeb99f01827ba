"""What a run says last, and what the same command says of a run that has finished."""

import json
from pathlib import Path

import pytest
from recipe_files import write

from rlhf_pg.cli import main

RECIPE = """
run: {dir: r, steps: 2, preflight: false, resume: auto}
model: {path: tiny}
data: {train: {task: arithmetic, options: {count: 8}}, eval: {options: {count: 2}}}
rollout: {prompts_per_step: 2, samples_per_prompt: 2, max_new_tokens: 2}
rewards: [{fn: gsm8k}]
kl: {coefficient: 0}
eval: {samples: 1, k: [1]}
"""


@pytest.fixture
def finished(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(RECIPE, "recipe.yaml")
    assert main(["train", "recipe.yaml"]) == 0
    return capsys.readouterr().out


def test_figures_notices_and_paths_come_last(finished):
    *_, pass_1, greedy, model, report = [
        line for line in finished.splitlines() if not line.startswith(("note", "at the end"))
    ]
    after = json.loads(Path("r/summary.json").read_text())["after"]
    assert pass_1.startswith(f"held-out pass@1  0.00 -> {after['pass@1']:.2f}  [") and greedy.startswith(
        "held-out greedy"
    )
    assert (model, report) == ("model: r/model", "report: r/report.html")


def test_a_finished_run_says_so_and_is_left_alone(finished, capsys):
    before = {path: path.stat().st_mtime_ns for path in Path("r").rglob("*") if path.is_file() and path.name != ".lock"}
    assert main(["train", "recipe.yaml"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "r has finished its 2 steps: nothing to do (run.steps=4 would go on)"
    assert said[-1] == "report: r/report.html" and "step " not in "".join(said[1:])
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize("changed", ["run.steps=3", "model.export_dtype=bfloat16"])
def test_more_steps_or_another_export_go_on(finished, changed, capsys):
    assert main(["train", "recipe.yaml", changed]) == 0
    assert "nothing to do" not in capsys.readouterr().out


def test_an_export_that_was_interrupted_is_finished(finished, capsys):
    Path("r/summary.json").unlink()
    assert main(["train", "recipe.yaml"]) == 0
    assert Path("r/summary.json").is_file() and "nothing to do" not in capsys.readouterr().out
