"""A process that fails, hangs or dies ends the others too: soon, with a status, and with the first cause in words."""

import json
import re
import signal
import time
from typing import Any

import pytest
import yaml

from tests.dist import launch, plays

DEADLINE_S = 4.0  # of the run in which a rank hangs


def outcome(kind, folder):
    """(exit status, output) of two processes of which rank 1 fails in step 2."""
    run = {"run": {"timeout_s": DEADLINE_S if kind == "hang" else 120.0}}
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(plays.recipe(folder / "run", "grpo", run | {"log": {"live": "auto"}})))
    return launch.finish(launch.start("cpu_ddp", "tests.dist.faults", kind, str(file)))


def test_an_error_on_one_rank_is_what_the_others_end_with(tmp_path):
    status, output = outcome("raise", tmp_path)
    assert status != 0
    assert "rank 1 failed first: RuntimeError: boom" in output
    assert "RuntimeError: boom" in output.split("rank 0")[0] or output.index("boom") < output.index("Traceback")


def test_a_rank_that_hangs_ends_the_run_at_the_deadline_and_both_stacks_are_shown(tmp_path):
    status, output = outcome("hang", tmp_path)
    assert status != 0
    message = re.search(r"rlhf-pg \(rank 0\): waited more than 4 s \(run\.timeout_s\) for (.*), step 2", output)
    assert message, output[-3000:]
    assert "rank 0 failed first: waited more than 4 s" in output  # on rank 1, which can still speak
    assert "in sleep_in_the_update" in output and "in all_reduce" in output  # where each of them is


def test_a_rank_that_is_killed_ends_the_run_and_what_was_waited_for_is_said(tmp_path):
    status, output = outcome("kill", tmp_path)
    assert status != 0
    assert re.search(r"rank 0\): waiting for .*, step 2", output), output[-3000:]


def test_an_error_in_rollouts_ends_all_ranks_together_with_a_checkpoint(tmp_path):
    status, output = outcome("rollout", tmp_path)
    assert status != 0
    assert "rank 1 failed first: RuntimeError: boom" in output
    assert "failed after step 1; saved" in output
    assert (tmp_path / "run" / "checkpoints" / "step_00000001" / "manifest.json").exists()


def test_sigterm_to_the_launcher_ends_in_a_checkpoint_of_all_ranks(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(plays.recipe(tmp_path / "run", "grpo", {"run": {"steps": 100_000}})))
    process = launch.start("cpu_ddp", "rlhf_pg", "train", str(file))
    metrics = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") > 1):
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    status, output = launch.finish(process)
    assert status != 0
    saved = list((tmp_path / "run" / "checkpoints").glob("step_*/state.json"))
    assert len(saved) == 1, output[-3000:]
    state = json.loads(saved[0].read_text())
    assert state["progress"]["step"] >= 2 and len(state["of_rank"]) == 2


@pytest.mark.parametrize("configuration", ["one", "ddp", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload"])
def test_each_configuration_is_one_that_accelerate_reads(configuration):
    from accelerate.commands.config.config_args import load_config_from_file

    launch_config: Any = load_config_from_file(str(launch.ROOT / "recipes" / "accelerate" / f"{configuration}.yaml"))
    stage = re.search(r"zero(\d)", configuration)
    assert (launch_config.deepspeed_config or {}).get("zero_stage") == (int(stage[1]) if stage else None)
