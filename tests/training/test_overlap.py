"""Rollouts one step ahead: whose weights sample them, what corrects for it, and where a run that is cut ends."""

import json
import signal
import time

import pytest
import torch

from rlhf_pg.distributed.interrupt import Stopped
from rlhf_pg.models.load import load_model, load_tokenizer
from rlhf_pg.rollout import launch_local
from rlhf_pg.rollout.engine_client import EngineClient
from rlhf_pg.rollout.engine_worker import EngineWorker
from rlhf_pg.storage import checkpoint
from rlhf_pg.training import gradient_step, loop
from tests.thread_engine import spawn_thread
from tests.tolerance import allowance, in_float64
from tests.training import small_run
from tests.training.test_loop import EPOCHS, launch, metrics, reproducible, stop_at, wait_for_step

SEED = 1  # of a run that has a gradient in every step
CHANGES = {"run": {"steps": 4, "seed": SEED}, "log": {"live": "off", "samples": 16}}


def overlapped(folder, **changes):
    rollout = {"overlap": True, **changes.pop("rollout", {})}
    return small_run.run(folder, rollout=rollout, **{"update": EPOCHS, **changes})


@pytest.fixture(autouse=True)
def thread(monkeypatch):
    monkeypatch.setattr(launch_local, "spawn", spawn_thread)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch_local, "spawn", spawn_thread)
        overlapped(folder, **CHANGES, checkpoint={"every": 1, "keep": 9})
    return folder


def sampled_logp(folder, step, weights):
    """Log-probs of the rollouts of a step, flat: logged, and by full forwards of the weights after step `weights`, in
    float32 and in float64."""
    model = load_model("tiny", seed=SEED)
    if weights:
        tensors, _ = checkpoint.load(folder / "checkpoints" / f"step_{weights:08d}")
        model.load_state_dict(tensors["model"])
    rows = [json.loads(r) for r in (folder / "rollouts" / f"step_{step:08d}.jsonl").read_text().splitlines()]
    tokenizer = load_tokenizer("tiny")
    logged, plain, exact = [], [], []
    for row in rows:
        prompt = tokenizer.encode(row["prompt"], add_special_tokens=False)
        for computed, each in ((plain, model), (exact, in_float64(model))):
            with torch.no_grad():
                logits = each(torch.tensor([[*prompt, *row["tokens"]]])).logits[0, len(prompt) - 1 : -1]
            computed += logits.log_softmax(-1).gather(1, torch.tensor(row["tokens"])[:, None])[:, 0].tolist()
        logged += row["logp"]
    return (torch.tensor(values, dtype=torch.float64) for values in (logged, plain, exact))


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_rollouts_come_from_the_weights_before_the_last_update(uninterrupted, step):
    logged, plain, old = sampled_logp(uninterrupted, step, max(0, step - 2))
    assert (logged - old).abs().max() <= allowance(plain, old) + 0.5e-5  # five digits are logged
    if step > 1:
        _, _, new = sampled_logp(uninterrupted, step, step - 1)
        assert (logged - new).abs().max() > 1e-3


def test_step_one_is_on_policy_and_the_mismatch_shows_from_step_two(uninterrupted):
    rows = metrics(uninterrupted)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[0]["mismatch/kl"] < 1e-9 and rows[0]["mismatch/ess"] == pytest.approx(1, abs=1e-6)
    assert all(row["mismatch/kl"] > 1e-6 and row["mismatch/ess"] < 1 - 1e-6 for row in rows[1:])
    assert all(0 <= row["mismatch/capped"] <= 1 and row["time/generation_s"] > 0 for row in rows)


@pytest.mark.parametrize("poll", [1, 9, 16, 24])  # a run whose rollouts are never waited for has some 35
def test_stopped_anywhere_a_run_ends_bitwise_where_it_would_have(tmp_path, monkeypatch, uninterrupted, poll):
    with monkeypatch.context() as patch:
        stop_at(poll, patch)
        assert overlapped(tmp_path, **CHANGES) != 0
    assert overlapped(tmp_path, **CHANGES | {"run": CHANGES["run"] | {"resume": "auto"}}) == 0
    small_run.assert_bitwise_equal(small_run.final_weights(uninterrupted), small_run.final_weights(tmp_path))
    assert reproducible(tmp_path) == reproducible(uninterrupted)


def cut_inside_the_update_of_step_two(monkeypatch, arrived):
    """Stop after its first optimizer step, when the next step's rollouts have all come, or have not."""

    def cut(learner, batch, signals, credit, step, start=0, poll=None):
        for taken in gradient_step.optimizer_steps(learner, batch, signals, credit, step, start):
            yield taken
            if step == 1:  # counted from 0
                raise Stopped("test")

    def look(engine):
        if arrived:
            engine.collect()
        return engine.started

    monkeypatch.setitem(loop.UPDATES, "gradient", cut)
    monkeypatch.setattr(EngineClient, "look", look)


@pytest.mark.parametrize("arrived", [True, False])
def test_rollouts_under_way_are_saved_as_completions_or_as_the_weights_that_sample_them_again(
    tmp_path, monkeypatch, uninterrupted, arrived
):
    with monkeypatch.context() as patch:
        cut_inside_the_update_of_step_two(patch, arrived)
        assert overlapped(tmp_path, **CHANGES) != 0
    tensors, state = checkpoint.load(tmp_path / "checkpoints" / "step_00000001")
    assert (state["updates"], state["ahead"]["version"], state["ahead"]["sampling"]["step"]) == (5, 4, 3)
    assert ("ahead" in tensors, "ahead_weights" in tensors) == (arrived, not arrived)
    again = CHANGES | {"run": CHANGES["run"] | {"resume": "auto"}}
    with pytest.raises(ValueError, match="rollouts of step 3 are under way with Sampling"):
        overlapped(tmp_path, **again, rollout={"max_new_tokens": 5})
    with pytest.raises(ValueError, match=r"changed: rollout\.overlap \(was True, is False\)"):
        overlapped(tmp_path, **again, rollout={"overlap": False})
    assert overlapped(tmp_path, **again) == 0
    small_run.assert_bitwise_equal(small_run.final_weights(uninterrupted), small_run.final_weights(tmp_path))
    assert reproducible(tmp_path) == reproducible(uninterrupted)


def test_a_lora_run_that_is_cut_ends_bitwise_where_it_would_have_and_saves_the_old_adapter_only(tmp_path, monkeypatch):
    lora = CHANGES | {"model": {"path": "tiny", "lora": {"rank": 2}}}
    overlapped(tmp_path / "whole", **lora)
    with monkeypatch.context() as patch:
        cut_inside_the_update_of_step_two(patch, arrived=False)
        assert overlapped(tmp_path / "cut", **lora) != 0
    tensors, _ = checkpoint.load(tmp_path / "cut" / "checkpoints" / "step_00000001")
    assert tensors["ahead_weights"] and all("lora_" in name for name in tensors["ahead_weights"])
    assert overlapped(tmp_path / "cut", **lora | {"run": CHANGES["run"] | {"resume": "auto"}}) == 0
    whole, cut = (small_run.final_weights(tmp_path / name) for name in ("whole", "cut"))
    small_run.assert_bitwise_equal(whole, cut)


def test_evaluations_between_the_steps_change_nothing(tmp_path, uninterrupted):
    data = {"train": {"task": "arithmetic", "options": {"count": 24}}}
    data["eval"] = {"task": "arithmetic", "options": {"count": 4}}
    overlapped(tmp_path, **CHANGES, data=data, eval={"every": 1, "samples": 2, "k": [1]})
    small_run.assert_bitwise_equal(small_run.final_weights(uninterrupted), small_run.final_weights(tmp_path))
    assert "eval/pass@1" in metrics(tmp_path)[2]


def test_an_error_in_the_process_ends_the_run_with_its_message_and_the_run_goes_on_once_mended(
    tmp_path, monkeypatch, uninterrupted
):
    generate = EngineWorker._generate

    def broken(self, request, tensors):
        if request["sampling"]["step"] == 3:
            raise KeyError("a bug")
        return generate(self, request, tensors)

    with monkeypatch.context() as patch:
        patch.setattr(EngineWorker, "_generate", broken)
        with pytest.raises(RuntimeError, match="the rollout process failed: KeyError: 'a bug'"):
            overlapped(tmp_path, **CHANGES)
    assert overlapped(tmp_path, **CHANGES | {"run": CHANGES["run"] | {"resume": "auto"}}) == 0
    small_run.assert_bitwise_equal(small_run.final_weights(uninterrupted), small_run.final_weights(tmp_path))


def test_sigterm_saves_and_leaves_within_ten_seconds(tmp_path):
    """With a real second process."""
    folder = tmp_path / "run"
    process = launch(folder, run={"steps": 100_000}, rollout={"overlap": True}, log={"live": "auto"})
    wait_for_step(process, folder, 2)
    process.send_signal(signal.SIGTERM)
    started = time.monotonic()
    output, _ = process.communicate(timeout=60)
    assert time.monotonic() - started < 10
    assert process.returncode != 0 and "run.resume=auto" in output
