"""What a run leaves of single samples and problems: rollouts/ with advantages, and eval.jsonl."""

import json
import statistics
from collections import defaultdict

import pytest
import torch

from rlhf_pg.distributed.interrupt import Stopped
from rlhf_pg.storage.run_dir import RunDir
from rlhf_pg.training import loop
from tests.tolerance import rounding
from tests.training import small_run

DECIMALS = 0.5e-5 + rounding(torch.float32, 1.0, 8)  # five are logged
HELD_OUT = {
    "data": {
        "train": {"task": "arithmetic", "options": {"count": 24}},
        "eval": {"task": "arithmetic", "options": {"count": 5}},
    },
    "eval": {"samples": 4, "k": [1, 4], "every": 2},
}


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def logged(folder):
    return {path.name: lines(path) for path in (folder / "rollouts").iterdir()}


def test_every_logged_sample_has_its_advantage(tmp_path):
    digits = {"rewards": [{"fn": f"{small_run.REWARDS}:share_of_digits"}], "algorithm": {"name": "rloo"}}
    small_run.run(tmp_path, **digits, log={"live": "off", "samples": 16}, run={"steps": 1})
    (rows,) = logged(tmp_path).values()
    groups = defaultdict(list)
    for row in rows:
        groups[row["prompt_id"]].append(row)
    assert len(rows) == 16 and any(row["advantage"] for row in rows)
    for group in groups.values():
        for row in group:
            others = statistics.fmean(r["reward"] for r in group if r is not row)
            assert row["advantage"] == pytest.approx(row["reward"] - others, rel=0, abs=DECIMALS)


def test_of_samples_left_out_the_advantage_is_null_and_the_others_keep_their_own(tmp_path):
    reward = tmp_path / "reward.py"
    reward.write_text(
        "def odd(completion):\n    x = sum(map(ord, completion))\n    return None if x % 2 else x / 1000\n"
    )
    changes = {"rewards": [{"fn": f"{reward}:odd"}], "algorithm": {"name": "reinforce"}}
    small_run.run(tmp_path / "run", **changes, log={"live": "off", "samples": 16}, run={"steps": 1})
    (rows,) = logged(tmp_path / "run").values()
    assert {row["reward"] is None for row in rows} == {True, False}
    for row in rows:
        left_out = row["reward"] is None
        assert row["advantage"] == (None if left_out else pytest.approx(row["reward"], rel=0, abs=DECIMALS))


def test_a_run_stopped_in_an_update_logs_the_same_samples_once_resumed(tmp_path, monkeypatch):
    small_run.run(tmp_path / "whole", run={"steps": 1})

    def stopped(*_):
        raise Stopped("test")

    monkeypatch.setitem(loop.UPDATES, "gradient", stopped)
    small_run.run(tmp_path / "cut", run={"steps": 1})
    monkeypatch.undo()
    small_run.run(tmp_path / "cut", run={"steps": 1, "resume": "auto"})
    assert logged(tmp_path / "cut") == logged(tmp_path / "whole")
    assert all("advantage" in row for rows in logged(tmp_path / "cut").values() for row in rows)


def test_every_evaluation_logs_every_problem_with_its_counts(tmp_path):
    small_run.run(tmp_path, **HELD_OUT)
    rows = lines(tmp_path / "eval.jsonl")
    assert [row["step"] for row in rows] == [0] * 5 + [2] * 5 + [3] * 5  # before, every 2 steps, after
    assert len({row["id"] for row in rows}) == 5 and all(row["n"] == 4 for row in rows)
    assert all(row["prompt"] and row["answer"] is not None and isinstance(row["greedy"], bool) for row in rows)
    summary = json.loads((tmp_path / "summary.json").read_text())
    for step, when in ((0, "before"), (3, "after")):
        of_step = [row for row in rows if row["step"] == step]
        assert statistics.fmean(row["correct"] / row["n"] for row in of_step) == pytest.approx(summary[when]["pass@1"])
        assert statistics.fmean(row["greedy"] for row in of_step) == pytest.approx(summary[when]["greedy"])


def test_an_evaluation_made_again_replaces_its_lines_and_later_ones_go_on_a_resume(tmp_path):
    def problem(correct):
        return {"id": "a", "prompt": "1 + 1", "answer": 2, "n": 4, "correct": correct, "greedy": None}

    with RunDir.open(tmp_path, "never") as folder:
        for step, correct in ((0, 1), (2, 2), (4, 3), (4, 4)):
            folder.write_evaluation(step, [problem(correct)])
        assert [(r["step"], r["correct"]) for r in lines(folder.evaluations)] == [(0, 1), (2, 2), (4, 4)]
        folder.truncate_after(3)
        assert lines(folder.evaluations) == [{"step": 0, **problem(1)}, {"step": 2, **problem(2)}]


@pytest.mark.parametrize("samples", [0, 3])
def test_as_many_samples_are_logged_as_the_recipe_asks_for(tmp_path, samples):
    small_run.run(tmp_path, log={"live": "off", "samples": samples}, run={"steps": 1})
    assert [len(rows) for rows in logged(tmp_path).values()] == [samples]
