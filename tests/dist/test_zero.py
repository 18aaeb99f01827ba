"""DeepSpeed on two processes does what one process without it does, at each stage; its checkpoints go on bitwise."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf_pg import config
from rlhf_pg.distributed.backend import Backend
from rlhf_pg.models.load import load_model
from tests.dist import launch, plays
from tests.dist.parity import assert_same_run
from tests.training import small_run

ALL = ["reinforce", "reinforce_baseline", "ppo", "grpo", "rloo", "no row", "nothing to learn"]
SOME = ["ppo", "grpo", "no row"]
PLAYED = {"1": SOME, "2": SOME, "3": ALL, "2_offload": ["grpo"], "3_offload": ["grpo"]}
STOPPED_AFTER = 3  # optimizer steps: inside the first rollout


@pytest.fixture(scope="module", params=PLAYED)
def zero(request, tmp_path_factory):
    """(stage, folder of all its runs, what was played)."""
    root = tmp_path_factory.mktemp(f"zero{request.param}")
    listed = [
        {"recipe": plays.recipe(plays.place(root, name), name, plays.RUNS[name] | plays.EVALUATED)}
        for name in PLAYED[request.param]
    ]
    listed += plays.cut(root, STOPPED_AFTER)
    status = launch.run_all(f"cpu_zero{request.param}", listed, root)
    assert status[-3:] == [0, 130, 0] and not any(status[:-3])
    return int(request.param[0]), root, PLAYED[request.param]


def test_two_processes_take_the_steps_of_one(zero, one_process):
    for name in zero[2]:
        assert_same_run(one_process(name), plays.place(zero[1], name))


def test_stopped_in_an_update_and_resumed_a_run_ends_bitwise_where_the_whole_one_does(zero):
    uncut, cut = zero[1] / "uncut", zero[1] / "cut"
    small_run.assert_bitwise_equal(small_run.final_weights(uncut), small_run.final_weights(cut))
    assert plays.metrics(uncut) == plays.metrics(cut)


def test_it_was_deepspeed_whose_ranks_hold_disjoint_halves_of_the_optimizer(zero):
    folder = sorted((zero[1] / "uncut" / "checkpoints").iterdir())[-1]
    state = json.loads((folder / "state.json").read_text())
    assert state["layout"] == {"kind": f"ZeRO-{zero[0]}", "processes": 2}
    halves = [sum(part["optimizer"]["shards"]) for part in state["of_rank"]]
    parameters = sum(t.numel() for t in small_run.final_weights(zero[1] / "uncut").values())
    assert parameters <= sum(halves) < 1.01 * parameters  # shards are padded to equal lengths
    assert not list(folder.glob("*.pt")) and not list(folder.glob("*.bin"))


def test_the_exported_model_opens_in_transformers_with_the_last_weights(zero):
    exported = AutoModelForCausalLM.from_pretrained(zero[1] / "uncut" / "model")
    saved = small_run.final_weights(zero[1] / "uncut")
    assert all(torch.equal(exported.state_dict()[name], tensor) for name, tensor in saved.items())
    started = load_model("tiny", seed=0).state_dict()
    assert any(not torch.equal(started[name], tensor) for name, tensor in saved.items())


def test_another_layout_is_refused_by_name(zero):
    folder = zero[1] / "uncut"
    with pytest.raises(ValueError, match=rf"saved by 2 process\(es\) with ZeRO-{zero[0]}.*1 with replicas"):
        plays.in_one_process(folder, plays.recipe(folder, "ppo", {**plays.CUT, "run": {"steps": 4, "resume": "must"}}))


def test_a_launch_for_deepspeed_that_would_run_without_is_refused(monkeypatch):
    Backend()  # as Accelerate is from here on in this process
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ValueError, match="asks for DeepSpeed, but Accelerate started NO"):
        Backend()


@pytest.mark.parametrize(
    ("changes", "stage", "message"),
    [
        ({"algorithm": {"name": "trpo"}, "optimizer": None}, 1, "trpo makes its own step"),
        ({"algorithm": {"name": "ppo"}, "critic": {"backbone": "policy"}}, 2, "critic.backbone: policy"),
        ({"algorithm": {"name": "ppo"}, "update": {"minibatches": 2, "max_kl": 0.1}}, 1, "update.max_kl"),
        ({"algorithm": {"name": "grpo"}, "model": {"path": "tiny", "lora": {"rank": 2}}}, 3, "model.lora"),
    ],
)
def test_what_deepspeed_cannot_do_is_refused_before_a_model_is_sharded(tmp_path, changes, stage, message):
    with pytest.raises(ValueError, match=message):
        config.parse(plays.recipe(tmp_path, "", changes), launch=config.Launch(2, zero_stage=stage))
