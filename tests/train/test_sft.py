"""A cold start imitates the solutions, and a finished one is neither repeated nor taken for another."""

import json
from pathlib import Path

import pytest

from rlhf_pg import config
from rlhf_pg.commands.run_sft import _learner, sft
from rlhf_pg.distributed.backend import Backend
from rlhf_pg.estimate.microbatch import suitable_positions


def recipe(folder, **run):
    raw = {
        "run": {"dir": str(folder), "resume": "auto", **run},
        "model": {"path": "tiny"},
        "data": {"train": {"task": "arithmetic", "options": {"count": 32}}},
        "sft": {"epochs": 8, "batch_size": 16},
        "optimizer": {"lr": 3e-3},
        "log": {"live": "off"},
    }
    return config.parse(raw, config.SftRecipe)


def test_its_micro_batches_are_those_of_every_other_learner():
    given = recipe(Path("unused"))
    learner, model = _learner(given, Backend(), total=1)
    assert learner.update.positions == suitable_positions(model.config, given.model, shared=False)


def test_the_loss_falls_and_a_finished_cold_start_is_left_alone_but_not_taken_for_another_seed(tmp_path):
    assert sft(recipe(tmp_path)) == 0
    losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 16
    assert losses[-1] < 0.7 * losses[0]
    written = (tmp_path / "model" / "model.safetensors").stat().st_mtime_ns
    assert sft(recipe(tmp_path)) == 0
    assert (tmp_path / "model" / "model.safetensors").stat().st_mtime_ns == written
    with pytest.raises(ValueError, match=r"another run; changed: run\.seed \(was 0, is 1\)"):
        sft(recipe(tmp_path, seed=1))
