"""Rollouts one step ahead: whose weights sample them, what corrects for it, and where a run that is cut ends."""

import json

import pytest
import torch

from rlhf_pg.models.load import load_model, load_tokenizer
from rlhf_pg.rollout.process import ProcessEngine
from rlhf_pg.train import checkpoint
from tests.thread_engine import launch_thread
from tests.train import small_run
from tests.train.test_loop import EPOCHS, metrics, reproducible, stop_at

SEED = 1  # of a run that has a gradient in every step
CHANGES = {"run": {"steps": 4, "seed": SEED}, "log": {"live": "off", "samples": 16}}


def overlapped(folder, **changes):
    rollout = {"overlap": True, **changes.pop("rollout", {})}
    return small_run.run(folder, rollout=rollout, **{"update": EPOCHS, **changes})


@pytest.fixture(autouse=True)
def thread(monkeypatch):
    monkeypatch.setattr(ProcessEngine, "_launch", launch_thread)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProcessEngine, "_launch", launch_thread)
        overlapped(folder, **CHANGES, checkpoint={"every": 1, "keep": 9})
    return folder


def sampled_logp(folder, step, weights):
    """(logged, by a full forward of the weights after step `weights`) log-probs of the rollouts of a step, flat."""
    model = load_model("tiny", seed=SEED)
    if weights:
        tensors, _ = checkpoint.load(folder / "checkpoints" / f"step_{weights:08d}")
        model.load_state_dict(tensors["model"])
    rows = [json.loads(r) for r in (folder / "rollouts" / f"step_{step:08d}.jsonl").read_text().splitlines()]
    tokenizer = load_tokenizer("tiny")
    logged, computed = [], []
    for row in rows:
        prompt = tokenizer.encode(row["prompt"], add_special_tokens=False)
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *row["tokens"]]])).logits[0, len(prompt) - 1 : -1]
        computed += logits.log_softmax(-1).gather(1, torch.tensor(row["tokens"])[:, None])[:, 0].tolist()
        logged += row["logp"]
    return torch.tensor(logged), torch.tensor(computed)


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_rollouts_come_from_the_weights_before_the_last_update(uninterrupted, step):
    logged, old = sampled_logp(uninterrupted, step, max(0, step - 2))
    torch.testing.assert_close(logged, old, atol=3e-5, rtol=0)
    if step > 1:
        _, new = sampled_logp(uninterrupted, step, step - 1)
        assert (logged - new).abs().max() > 1e-3


def test_step_one_is_on_policy_and_the_mismatch_shows_from_step_two(uninterrupted):
    rows = metrics(uninterrupted)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[0]["mismatch/kl"] < 1e-9 and rows[0]["mismatch/ess"] == pytest.approx(1, abs=1e-6)
    assert all(row["mismatch/kl"] > 1e-6 and row["mismatch/ess"] < 1 - 1e-6 for row in rows[1:])
    assert all(0 <= row["mismatch/capped"] <= 1 and row["time/generation_s"] > 0 for row in rows)


@pytest.mark.parametrize("poll", [1, 6, 9, 12, 16, 20, 24, 30, 36, 42])
def test_stopped_anywhere_a_run_ends_bitwise_where_it_would_have(tmp_path, monkeypatch, uninterrupted, poll):
    with monkeypatch.context() as patch:
        stop_at(poll, patch)
        assert overlapped(tmp_path, **CHANGES) != 0
    assert overlapped(tmp_path, **CHANGES | {"run": CHANGES["run"] | {"resume": "auto"}}) == 0
    small_run.assert_bitwise_equal(small_run.final_weights(uninterrupted), small_run.final_weights(tmp_path))
    assert reproducible(tmp_path) == reproducible(uninterrupted)
