"""A run learns, logs what it did, and can be cut anywhere without changing where it ends."""

import json
import signal
import statistics
import subprocess
import sys
import time

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from rlhf_pg import config
from rlhf_pg.commands import run_training
from rlhf_pg.distributed.interrupt import Stopped, StopRequest
from rlhf_pg.training import loop
from tests.training import small_run

EPOCHS = {"epochs": 2, "minibatches": 2, "tokens_per_microbatch": 60}


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def reproducible(folder):
    """The metrics without clock and memory."""
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "memory/"))} for row in metrics(folder)]


@pytest.mark.parametrize("seed", [11, 12, 13])
def test_reward_rises_from_chance_to_nearly_all_sevens(tmp_path, seed):
    run = {"steps": 40, "seed": seed}
    rollout = {"prompts_per_step": 4, "samples_per_prompt": 8, "max_new_tokens": 4}
    small_run.run(tmp_path, run=run, rollout=rollout, optimizer={"lr": 3e-3}, kl={"coefficient": 0.0})
    rewards = [row["reward/mean"] for row in metrics(tmp_path)]
    assert rewards[0] < 0.2
    assert statistics.fmean(rewards[-4:]) > 0.9


def test_a_run_writes_its_config_metrics_samples_summary_report_and_a_model_that_transformers_opens(tmp_path):
    held_out = {"task": "arithmetic", "options": {"count": 4}}
    changes = {
        "data": {"train": {"task": "arithmetic", "options": {"count": 24}}, "eval": held_out},
        "eval": {"samples": 2, "k": [1, 2]},
    }
    small_run.run(tmp_path, **changes)
    rows = metrics(tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 3]
    expected = {
        "reward/mean",
        "reward/std",
        "reward/zero_std_groups",
        "kl/ref",
        "entropy",
        "clip/fraction",
        "grad_norm",
    }
    expected |= {"completion/length_mean", "completion/truncated", "mismatch/kl", "tokens/forwarded"}
    expected |= {"time/step_s", "time/rollout_s", "time/reward_s", "time/update_s"}
    assert expected <= rows[0].keys()
    assert abs(rows[0]["kl/ref"]) < 1e-9  # the reference is the policy before its first update
    assert rows[-1]["kl/ref"] > 1e-6
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert {"pass@1", "pass@2", "greedy"} <= summary["before"].keys() & summary["after"].keys()
    assert config.load(tmp_path / "config.yaml") == small_run.recipe(tmp_path, **changes)
    assert "<html" in (tmp_path / "report.html").read_text()
    sample = json.loads((tmp_path / "rollouts" / "step_00000001.jsonl").read_text().splitlines()[0])
    assert len(sample["tokens"]) == len(sample["logp"]) and sample["outcome"] == "scored"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    reloaded = dict(model.named_parameters())
    assert all(torch.equal(reloaded[n], t) for n, t in small_run.final_weights(tmp_path).items() if n in reloaded)


def test_the_same_recipe_gives_bitwise_the_same_weights_and_another_seed_others(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        small_run.run(tmp_path / name, run={"seed": seed, "steps": 2})
    a, b, c = (small_run.final_weights(tmp_path / name) for name in "abc")
    small_run.assert_bitwise_equal(a, b)
    assert not all(torch.equal(a[n], c[n]) for n in a)


def test_a_step_shows_the_rollout_then_the_wait_for_rewards_then_the_update(tmp_path, monkeypatch):
    shown, phase = [], loop.LiveView.phase
    monkeypatch.setattr(loop.LiveView, "phase", lambda self, name: (shown.append(name), phase(self, name)))
    small_run.run(tmp_path, run={"steps": 2})
    assert shown == ["rollout", "reward", "update", "update"] * 2  # signals, then steps


def test_a_vanishing_learning_rate_leaves_the_weights_where_they_were(tmp_path):
    small_run.run(tmp_path / "a", run={"steps": 0})
    small_run.run(tmp_path / "b", run={"steps": 2}, optimizer={"lr": 1e-30})
    a, b = small_run.final_weights(tmp_path / "a"), small_run.final_weights(tmp_path / "b")
    assert max(float((a[n] - b[n]).abs().max()) for n in a) < 1e-28


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    small_run.run(folder, update=EPOCHS)
    return folder


def stop_at(poll, monkeypatch):
    """Make the run believe that SIGTERM arrived just before its `poll`-th look."""

    class StopsAt(StopRequest):
        seen = 0

        def raise_if_requested(self):
            self.seen += 1
            if self.seen == poll:
                self.request("test")
            super().raise_if_requested()

    monkeypatch.setattr(run_training, "StopRequest", StopsAt)


@pytest.mark.parametrize("poll", [1, 4, 8, 9, 11, 14, 17, 22, 30])
def test_stopped_in_the_middle_of_a_rollout_or_an_update_a_run_ends_bitwise_where_it_would_have(
    tmp_path, monkeypatch, uninterrupted, poll
):
    stop_at(poll, monkeypatch)
    assert small_run.run(tmp_path, update=EPOCHS) != 0
    monkeypatch.undo()
    assert small_run.run(tmp_path, update=EPOCHS, run={"resume": "auto"}) == 0
    small_run.assert_bitwise_equal(small_run.final_weights(uninterrupted), small_run.final_weights(tmp_path))
    assert [row["step"] for row in metrics(tmp_path)] == [1, 2, 3]
    assert reproducible(tmp_path) == reproducible(uninterrupted)


def test_a_run_stopped_in_an_update_keeps_the_rollouts_it_had_paid_for(tmp_path, monkeypatch):
    def stopped(*_):
        raise Stopped("test")

    monkeypatch.setitem(loop.UPDATES, "gradient", stopped)
    small_run.run(tmp_path, update=EPOCHS)
    monkeypatch.undo()
    monkeypatch.setattr(loop.collect, "rollouts", None)  # generating again would now fail
    with pytest.raises(TypeError):
        small_run.run(tmp_path, update=EPOCHS, run={"resume": "auto"})
    assert [row["step"] for row in metrics(tmp_path)] == [1]
    assert [path.name for path in (tmp_path / "rollouts").iterdir()] == ["step_00000001.jsonl"]


def test_a_lora_run_resumes_bitwise_and_exports_merged_weights_that_moved(tmp_path, monkeypatch):
    lora = {"model": {"path": "tiny", "lora": {"rank": 2}}, "update": EPOCHS}
    small_run.run(tmp_path / "whole", **lora)
    small_run.run(tmp_path / "start", **lora, run={"steps": 0})
    stop_at(12, monkeypatch)
    assert small_run.run(tmp_path / "cut", **lora) != 0
    monkeypatch.undo()
    assert small_run.run(tmp_path / "cut", **lora, run={"resume": "auto"}) == 0
    whole, start, cut = (small_run.final_weights(tmp_path / name) for name in ("whole", "start", "cut"))
    small_run.assert_bitwise_equal(whole, cut)
    assert not any("lora" in name for name in whole)
    assert not all(torch.equal(whole[name], start[name]) for name in whole)


def test_a_reference_that_changed_on_disk_is_refused_at_resume(tmp_path):
    small_run.run(tmp_path / "base", run={"steps": 0})
    base = {"path": str(tmp_path / "base" / "model")}
    small_run.run(tmp_path / "run", model=base, checkpoint={"every": 1})
    small_run.run(tmp_path / "other", run={"steps": 0, "seed": 5})
    other = (tmp_path / "other" / "model" / "model.safetensors").read_bytes()
    (tmp_path / "base" / "model" / "model.safetensors").write_bytes(other)
    with pytest.raises(ValueError, match="the reference model is not the one this run started from"):
        small_run.run(tmp_path / "run", model=base, checkpoint={"every": 1}, run={"resume": "auto", "steps": 4})


def test_resuming_with_another_recipe_is_refused_and_names_what_changed(tmp_path):
    small_run.run(tmp_path, checkpoint={"every": 1})
    with pytest.raises(ValueError, match=r"another run; changed: run\.seed \(was 0, is 3\)"):
        small_run.run(tmp_path, checkpoint={"every": 1}, run={"resume": "auto", "seed": 3})
    small_run.run(tmp_path, checkpoint={"every": 1}, run={"resume": "auto", "steps": 4})
    assert metrics(tmp_path)[-1]["step"] == 4


def test_resuming_with_other_arguments_of_a_reward_is_refused(tmp_path):
    def rewards(budget):
        return [f"{small_run.REWARDS}:share_of_sevens", {"fn": "length", "args": {"length_budget": budget}}]

    small_run.run(tmp_path, rewards=rewards(1), checkpoint={"every": 1})
    assert min(row["reward/length"] for row in metrics(tmp_path)) < 0  # of the default budget nothing is too long
    with pytest.raises(ValueError, match=r"another run; changed: rewards \(.*'length_budget': 1.*'length_budget': 9"):
        small_run.run(tmp_path, rewards=rewards(9), checkpoint={"every": 1}, run={"resume": "auto", "steps": 4})


def test_a_run_whose_reward_begins_to_fail_saves_first_and_goes_on_once_it_is_mended(tmp_path):
    fails = {"rewards": [{"fn": f"{small_run.REWARDS}:sevens_unless_forbidden"}], "update": EPOCHS}
    forbidden = small_run.REWARDS.with_name("forbidden")
    small_run.run(tmp_path / "whole", **fails)
    small_run.run(tmp_path / "run", **fails, run={"steps": 2})
    forbidden.touch()
    try:
        with pytest.raises(RuntimeError, match="forbidden"):
            small_run.run(tmp_path / "run", **fails, run={"steps": 3, "resume": "auto"})
    finally:
        forbidden.unlink()
    small_run.run(tmp_path / "run", **fails, run={"resume": "auto"})
    whole, mended = (small_run.final_weights(tmp_path / name) for name in ("whole", "run"))
    small_run.assert_bitwise_equal(whole, mended)


def launch(folder, **changes):
    recipe = folder.parent / "recipe.yaml"
    recipe.write_text(config.dump(small_run.recipe(folder, **changes)))
    command = [sys.executable, "-m", "rlhf_pg", "train", str(recipe), "run.resume=auto"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_step(process, folder, step):
    deadline = time.monotonic() + 120
    while not (folder / "metrics.jsonl").exists() or len((folder / "metrics.jsonl").read_text().splitlines()) < step:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, "the run did not get this far in two minutes"
        time.sleep(0.005)


LONG = dict(run={"steps": 12}, update=EPOCHS, checkpoint={"every": 2})


def test_killed_with_sigkill_twice_a_run_ends_bitwise_where_it_would_have(tmp_path):
    whole, killed = tmp_path / "whole" / "run", tmp_path / "killed" / "run"
    whole.parent.mkdir()
    killed.parent.mkdir()
    other = launch(whole, **LONG)
    for step in (3, 8):
        process = launch(killed, **LONG)
        wait_for_step(process, killed, step)
        process.kill()
        process.communicate()
    assert launch(killed, **LONG).communicate()[0] is not None
    other.communicate()
    small_run.assert_bitwise_equal(small_run.final_weights(whole), small_run.final_weights(killed))
    assert [row["step"] for row in metrics(killed)] == list(range(1, 13))


def test_sigterm_saves_and_leaves_within_ten_seconds(tmp_path):
    folder = tmp_path / "run"
    process = launch(folder, run={"steps": 100_000}, log={"live": "auto"})
    wait_for_step(process, folder, 2)
    process.send_signal(signal.SIGTERM)
    started = time.monotonic()
    output, _ = process.communicate(timeout=60)
    assert time.monotonic() - started < 10
    assert process.returncode != 0 and "run.resume=auto" in output
    state = yaml.safe_load(next((folder / "checkpoints").glob("*/state.json")).read_text())
    assert state["progress"]["step"] >= 2
