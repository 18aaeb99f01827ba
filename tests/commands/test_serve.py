"""`rlhf-pg serve` beside `rlhf-pg train`: real processes, and what the death of the server does to a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlhf_pg.errors import RunError
from rlhf_pg.rollout.engine_client import EngineClient
from tests.training.small_run import REWARDS, assert_bitwise_equal, final_weights, run

ROOT = Path(__file__).parents[2]
RECIPE = f"""
run: {{dir: unused}}
model: {{path: tiny}}
data: {{train: {{task: arithmetic, options: {{count: 24}}}}}}
rollout: {{prompts_per_step: 4, samples_per_prompt: 4, max_new_tokens: 6}}
rewards: [{{fn: "{REWARDS}:share_of_sevens"}}]
kl: {{coefficient: 0.05}}
"""


class Serving:
    """`rlhf-pg serve`, which may be killed and started again. Its engine: `native`, or what `engine` says."""

    def __init__(self, folder: Path, engine: str = "native"):
        self.file, self.recipe = folder / "serve.json", folder / "recipe.yaml"
        self.recipe.write_text(RECIPE)
        self.engine, self.log = engine, folder / "serve.log"
        self.start()

    def start(self):
        words = ["serve", str(self.recipe), f"rollout.server={self.file}", f"rollout.engine={self.engine}"]
        with self.log.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "rlhf_pg", *words], stdout=out, stderr=out, cwd=ROOT, env={**os.environ}
            )

    def kill(self):
        self.process.kill()
        self.process.wait()

    def wait(self, seconds=120.0):
        deadline = time.monotonic() + seconds
        while "serving" not in self.log.read_text():
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)


@pytest.fixture
def serving(tmp_path):
    server = Serving(tmp_path)
    yield server
    server.kill()


def settings(file, **changes):
    return {"rollout": {"server": str(file), **changes}}


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_whose_server_dies_stops_saved_and_goes_on_to_where_an_undisturbed_one_ends(
    serving, tmp_path, monkeypatch
):
    """One server process for both runs, killed and started again in between; rewards are the native engine's own."""
    serving.wait()
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run(whole, **settings(serving.file)) == 0
    assert run(tmp_path / "native") == 0
    expected = [line["reward/mean"] for line in lines(tmp_path / "native")]
    assert [line["reward/mean"] for line in lines(whole)] == pytest.approx(expected)

    generate, calls = EngineClient.generate, 0

    def dying(self, *given, **named):
        nonlocal calls
        calls += 1
        if calls == 3:
            serving.kill()
            self.worker.timeout_s = 1.0
        return generate(self, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(EngineClient, "generate", dying)
        with pytest.raises(RunError, match=r"serve\.json failed 3 times"):
            run(broken, **settings(serving.file))
    assert [line["step"] for line in lines(broken)] == [1, 2]
    serving.start()
    assert (
        run(
            broken,
            **settings(serving.file),
            run={"dir": str(broken), "steps": 3, "preflight": False, "resume": "auto"},
        )
        == 0
    )
    assert [line["step"] for line in lines(broken)] == [1, 2, 3]
    assert_bitwise_equal(final_weights(whole), final_weights(broken))


def test_serve_without_a_file_to_meet_at_says_so(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    done = subprocess.run(
        [sys.executable, "-m", "rlhf_pg", "serve", str(tmp_path / "recipe.yaml")],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 2 and "rollout.server: required" in done.stderr
