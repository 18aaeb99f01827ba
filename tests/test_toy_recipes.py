"""Every algorithm of the ladder learns the toy, by its recipe as shipped, from a seed that nobody chose settings on."""

import json
import statistics

import pytest

from rlhf_pg import cli

ALGORITHMS = ["reinforce", "reinforce_baseline", "trpo", "ppo", "grpo", "rloo"]


@pytest.mark.parametrize("name", [*ALGORITHMS, "grpo_lora"])
def test_the_last_tenth_of_the_steps_earns_nearly_all(tmp_path, name, capfd):
    arguments = [f"recipes/toy_{name}.yaml", f"run.dir={tmp_path}", "run.seed=101", "log.live=off"]
    assert cli.main(["train", *arguments]) == 0
    assert "warning: " not in capfd.readouterr().err  # nothing is wrong with it
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rewards = [row["reward/mean"] for row in rows]
    assert len(rewards) == 60 and rewards[0] < 0.1
    assert statistics.fmean(rewards[-6:]) >= (0.75 if name == "grpo_lora" else 0.85)  # over a frozen random model
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["algorithm"] == name.removesuffix("_lora")
    assert summary["before"]["pass@1"] < 0.1 < summary["after"]["pass@1"]
