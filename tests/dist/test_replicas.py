"""Two processes that hold all weights each do what one process does: the same samples, rewards and gradients."""

import json
import shutil

import pytest
import torch

from rlhf_pg.storage import checkpoint
from tests.dist import launch, plays
from tests.dist.parity import assert_same_run
from tests.training import small_run

STOPPED_AFTER = 9  # optimizer steps: a rollout has four of the policy's and two of the critic's


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of all runs by two processes, and their exit statuses."""
    root = tmp_path_factory.mktemp("replicas")
    listed = [
        {"recipe": plays.recipe(plays.place(root, name), name, changes | plays.EVALUATED)}
        for name, changes in plays.RUNS.items()
    ]
    short = {**plays.CUT, "run": {"steps": 2}}
    listed += [*plays.cut(root, STOPPED_AFTER), {"recipe": plays.recipe(root / "short", "ppo", short)}]
    return root, launch.run_all("cpu_ddp", listed, root)


@pytest.mark.parametrize("name", plays.RUNS)
def test_two_processes_take_the_steps_of_one(runs, one_process, name):
    assert_same_run(one_process(name), plays.place(runs[0], name))


def test_a_rank_without_advantages_was_among_the_runs(one_process):
    """Two prompts a step, one a rank: where one of the two groups has equal rewards, one rank has nothing to learn."""
    shares = [row["reward/zero_std_groups"] for row in plays.metrics(one_process("nothing to learn"))]
    assert 0.5 in shares, shares


def test_stopped_on_one_rank_in_an_update_all_save_and_the_resumed_run_ends_bitwise_where_the_whole_one_does(runs):
    root, status = runs
    assert status[-4:] == [0, 130, 0, 0]
    small_run.assert_bitwise_equal(small_run.final_weights(root / "uncut"), small_run.final_weights(root / "cut"))
    assert plays.metrics(root / "uncut") == plays.metrics(root / "cut")


def test_each_rank_saved_the_rows_it_had_paid_for(runs):
    folder = runs[0] / "cut" / "checkpoints" / "step_00000001"
    state = json.loads((folder / "state.json").read_text())
    assert len(state["pending"]["updates"]) == 3 and len(state["of_rank"]) == 2
    rows = [len(checkpoint.load(folder, rank)[0]["pending"]["batch.reward"]) for rank in (0, 1)]
    assert rows == [12, 8]  # prompts 0, 2, 4 and prompts 1, 3 with four samples each


def test_between_steps_one_process_goes_on_where_two_were(runs, tmp_path):
    folder = tmp_path / "short"
    shutil.copytree(runs[0] / "short", folder)
    assert (
        plays.in_one_process(folder, plays.recipe(folder, "ppo", {**plays.CUT, "run": {"steps": 3, "resume": "must"}}))
        == 0
    )
    uncut, continued = small_run.final_weights(runs[0] / "uncut"), small_run.final_weights(folder)
    assert all(torch.allclose(uncut[name], continued[name], atol=1e-4) for name in uncut)


def test_within_a_step_another_number_of_processes_is_refused(runs, tmp_path):
    folder = tmp_path / "cut"
    shutil.copytree(runs[0] / "cut", folder)
    for later in sorted((folder / "checkpoints").iterdir())[1:]:
        shutil.rmtree(later)
    with pytest.raises(ValueError, match=r"saved by 2 process\(es\) with replicas and was stopped inside"):
        plays.in_one_process(folder, plays.recipe(folder, "ppo", {**plays.CUT, "run": {"steps": 3, "resume": "must"}}))
