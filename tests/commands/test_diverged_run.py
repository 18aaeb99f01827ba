"""A run whose weights are no longer finite leaves its last sound checkpoint, and goes on from it."""

import json
from pathlib import Path

import pytest
import torch
from recipe_files import write

from rlhf_pg.cli import main
from rlhf_pg.training import loop

RECIPE = """
run: {dir: r, steps: 3, preflight: false, resume: auto}
model: {path: tiny}
data: {train: {task: arithmetic, options: {count: 16}}}
rollout: {prompts_per_step: 2, samples_per_prompt: 4, max_new_tokens: 4}
rewards: [{fn: mine.py:longer}]
kl: {coefficient: 0}
optimizer: {lr: 1.0e-3}
checkpoint: {every: 1, keep: 1}
"""


def steps() -> list[int]:
    return [json.loads(line)["step"] for line in Path("r/metrics.jsonl").read_text().splitlines()]


def checkpoints() -> list[str]:
    return sorted(folder.name for folder in Path("r/checkpoints").iterdir())


@pytest.fixture(autouse=True)
def _trained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("def longer(completion):\n    return float(sum(map(ord, completion)) % 7)\n", "mine.py")
    write(RECIPE, "recipe.yaml")
    assert main(["train", "recipe.yaml", "log.live=off"]) == 0
    assert checkpoints() == ["step_00000002", "step_00000003"]  # from 2 a step is known to succeed


def test_an_absurd_rate_costs_no_checkpoint(capsys):
    assert main(["train", "recipe.yaml", "run.steps=9", "optimizer.lr=1e30"]) == 1
    out = capsys.readouterr().out
    assert "diverged after step" in out and "run.resume=auto goes on from step_0000000" in out
    assert "step_00000003" in checkpoints()
    assert main(["train", "recipe.yaml", "run.steps=5"]) == 0
    assert steps() == [1, 2, 3, 4, 5]
    assert Path("r/model/model.safetensors").is_file()


def test_a_weight_that_became_nan_is_never_saved(monkeypatch, capsys):
    record = loop.record

    def spoil(run, metrics):
        record(run, metrics)
        if run.progress.step == 4:
            with torch.no_grad():
                next(run.session.model.parameters()).view(-1)[0] = float("nan")

    with monkeypatch.context() as patch:
        patch.setattr("rlhf_pg.commands.run_training.record", spoil)
        assert main(["train", "recipe.yaml", "run.steps=6"]) == 1
    captured = capsys.readouterr()
    assert "is not finite after step 4: no checkpoint was written" in captured.err
    assert "step_00000004" not in checkpoints() and "step_00000003" in checkpoints()
    assert main(["train", "recipe.yaml", "run.steps=6"]) == 0
    assert steps() == [1, 2, 3, 4, 5, 6]
