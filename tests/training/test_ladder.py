"""Every algorithm runs in the one loop, logs what it should, and can be cut anywhere: critic, adaptive KL and all."""

import json
import statistics
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from rlhf_pg import config
from rlhf_pg.commands import run_training
from rlhf_pg.distributed.interrupt import Stopped, StopRequest
from rlhf_pg.models.export import save_model
from rlhf_pg.models.load import tiny_model
from rlhf_pg.models.tokenizer import character_tokenizer
from rlhf_pg.training import gradient_step, loop, setup
from tests.training import small_run

IN_REWARD = {"coefficient": 0.05, "placement": "reward", "estimator": "k1"}
CRITIC = {"epochs": 2, "minibatches": 2, "optimizer": {"lr": 1e-3, "schedule": "linear"}}
SMALL = {"tokens_per_microbatch": 60}
CASES = {
    "reinforce": dict(algorithm={"name": "reinforce"}, kl=IN_REWARD),
    "rloo": dict(algorithm={"name": "rloo"}),
    "baseline, own critic": dict(algorithm={"name": "reinforce_baseline"}, kl=IN_REWARD, critic=CRITIC | {"warmup": 1}),
    "baseline, shared critic": dict(algorithm={"name": "reinforce_baseline"}, critic={"backbone": "policy"}),
    "trpo": dict(algorithm={"name": "trpo", "options": {"cg_iterations": 3}}, critic=CRITIC, optimizer=None),
    "ppo, adaptive kl, early stop": dict(
        algorithm={"name": "ppo"},
        kl=IN_REWARD | {"target": 1e-4, "horizon": 20},
        critic=CRITIC | {"clip": 0.2},
        update={"epochs": 2, "minibatches": 2, "max_kl": 2e-4},
    ),
    "ppo, shared critic": dict(
        algorithm={"name": "ppo"}, critic={"backbone": "policy", "clip": 0.2}, update={"epochs": 2, "minibatches": 2}
    ),
    "ppo on an adapter": dict(
        algorithm={"name": "ppo"}, model={"path": "tiny", "lora": {"rank": 2}}, critic=CRITIC, update={"epochs": 2}
    ),
}


def changes(name, **more):
    made = dict(CASES[name])
    made["update"] = SMALL | made.get("update", {})
    return made | more


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def reproducible(folder):
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "memory/"))} for row in metrics(folder)]


def last_checkpoint(folder):
    """Its tensors, without the state of the process's random streams, from which a run draws nothing."""
    newest = max((folder / "checkpoints").glob("step_*"))
    files = [path for path in newest.glob("*.safetensors") if path.stem != "random"]
    return {f"{path.stem}/{name}": t for path in files for name, t in load_file(path).items()}


rollouts = loop.collect.rollouts


def without_polls(*given, poll, **options):
    """While it waits for rewards, a run looks as often as time allows: that would not be the same twice."""
    return rollouts(*given, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Uninterrupted runs by case, and how often each looked whether to stop."""
    done = {}

    def run(name):
        if name not in done:
            folder, looks = tmp_path_factory.mktemp("whole"), []
            counts = type("Counts", (StopRequest,), {"raise_if_requested": lambda _: looks.append(1)})
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(loop.collect, "rollouts", without_polls)
                patch.setattr(run_training, "StopRequest", counts)
                assert small_run.run(folder, **changes(name)) == 0
            done[name] = folder, len(looks)
        return done[name]

    return run


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("at", [0.15, 0.45, 0.6, 0.75, 0.9, 0.99])
def test_stopped_anywhere_a_run_ends_bitwise_where_it_would_have(tmp_path, monkeypatch, whole, name, at):
    folder, looks = whole(name)

    class StopsAt(StopRequest):
        seen = 0

        def raise_if_requested(self):
            self.seen += 1
            if self.seen == round(at * looks):
                self.request("test")
            super().raise_if_requested()

    monkeypatch.setattr(loop.collect, "rollouts", without_polls)
    monkeypatch.setattr(run_training, "StopRequest", StopsAt)
    assert small_run.run(tmp_path, **changes(name)) != 0
    monkeypatch.undo()
    assert small_run.run(tmp_path, **changes(name, run={"resume": "auto"})) == 0
    small_run.assert_bitwise_equal(last_checkpoint(folder), last_checkpoint(tmp_path))
    assert reproducible(folder) == reproducible(tmp_path)


@pytest.mark.parametrize("name", CASES)
def test_each_run_moves_its_weights_and_logs_finite_numbers(whole, tmp_path, name):
    folder, _ = whole(name)
    small_run.run(tmp_path, **changes(name, run={"steps": 0}))
    start, end = small_run.final_weights(tmp_path), small_run.final_weights(folder)
    assert not all(torch.equal(start[n], end[n]) for n in start)
    for row in metrics(folder):
        assert all(isinstance(v, int | float) and v == v for v in row.values()), row


def test_a_critic_of_its_own_learns_and_is_saved(whole):
    for name in ("baseline, own critic", "baseline, shared critic", "trpo", "ppo on an adapter"):
        folder, _ = whole(name)
        saved = last_checkpoint(folder)
        heads = [t for n, t in saved.items() if n.startswith("critic/") and n.endswith("linear.weight")]
        assert len(heads) == 1 and bool(heads[0].any()), name  # it started at zero
        assert any(n.startswith("critic_optimizer/") for n in saved), name
        assert all({"value/loss", "value/mean", "value/grad_norm"} <= row.keys() for row in metrics(folder)[1:])


def test_while_the_critic_warms_up_the_policy_stays(tmp_path):
    wait = changes("baseline, own critic", critic=CRITIC | {"warmup": 2})
    small_run.run(tmp_path, **wait)
    rows = metrics(tmp_path)
    assert [row["update/steps"] for row in rows] == [0, 0, 1]
    assert all(row["value/loss"] > 0 for row in rows if row["reward/std"])
    assert "grad_norm" not in rows[1] and "grad_norm" in rows[2]


def test_updates_stop_once_the_policy_has_moved_max_kl(whole, tmp_path):
    folder, _ = whole("ppo, adaptive kl, early stop")
    assert {row["update/steps"] for row in metrics(folder)} & {1, 2, 3}
    free = changes("ppo, adaptive kl, early stop", update={"epochs": 2, "minibatches": 2, "max_kl": 1e9} | SMALL)
    small_run.run(tmp_path, **free)
    assert {row["update/steps"] for row in metrics(tmp_path)} == {4}
    assert max(row["kl/old"] for row in metrics(folder)) < max(row["kl/old"] for row in metrics(tmp_path))


def test_the_kl_coefficient_follows_its_target_by_the_rule(whole):
    rows = metrics(whole("ppo, adaptive kl, early stop")[0])
    assert rows[0]["kl/coefficient"] == 0.05
    for before, after in pairwise(rows):
        error = min(0.2, max(-0.2, before["kl/ref"] / 1e-4 - 1))
        assert after["kl/coefficient"] == pytest.approx(before["kl/coefficient"] * (1 + error * 16 / 20))
    assert len({row["kl/coefficient"] for row in rows}) == 3


def test_a_trust_region_run_says_how_far_it_went_and_what_it_cost(whole):
    rows = [row for row in metrics(whole("trpo")[0]) if row["advantage/rms"]]  # else the gradient is rounding, if any
    assert rows
    for row in rows:
        assert row["trust/accepted"] == 1
        assert 0 < row["trust/kl"] <= row["trust/max_kl"] == 0.01
        assert row["trust/line_search_steps"] >= 1 and row["trust/backwards"] > 1
        assert row["update/steps"] == 1


def test_standardised_advantages_do_not_depend_on_the_scale_of_the_reward(tmp_path):
    rows = {}
    for weight in (1.0, 64.0):
        folder = tmp_path / str(weight)
        reward = [{"fn": f"{small_run.REWARDS}:share_of_sevens", "weight": weight}]
        options = {"name": "reinforce", "options": {"standardise": True}}
        small_run.run(folder, rewards=reward, algorithm=options, kl={"coefficient": 0.0}, run={"steps": 1})
        rows[weight] = metrics(folder)[0]
    assert rows[64.0]["advantage/rms"] == pytest.approx(64 * rows[1.0]["advantage/rms"], rel=1e-5)
    assert rows[64.0]["grad_norm"] == pytest.approx(rows[1.0]["grad_norm"], rel=1e-4)


@pytest.mark.parametrize("backbone", ["copy", "policy"])
def test_a_critic_comes_to_explain_the_returns(tmp_path, backbone):
    critic = {"backbone": backbone, "optimizer": {"lr": 3e-3}} | (
        {"epochs": 2} if backbone == "copy" else {"coefficient": 1.0}
    )
    small_run.run(
        tmp_path,
        run={"steps": 40},
        rollout={"prompts_per_step": 12, "samples_per_prompt": 2, "max_new_tokens": 3},
        rewards=[{"fn": f"{small_run.REWARDS}:seven_in_prompt"}],
        algorithm={"name": "reinforce_baseline"},
        critic=critic,
        kl={"coefficient": 0.0},
    )
    explained = [row["value/explained_variance"] for row in metrics(tmp_path) if row["reward/std"]]
    assert explained[0] < 0.1  # a head of zeros explains nothing
    assert statistics.fmean(explained[-5:]) > 0.5


@pytest.mark.parametrize("algorithm", ["reinforce_baseline", "ppo"])
def test_values_from_the_updates_own_forward_change_nothing_but_the_passes(tmp_path, monkeypatch, algorithm):
    """A shared critic on-policy, with the credit made before the update and in it."""
    section = {"name": algorithm, "options": {"standardise": False}}
    same = dict(algorithm=section, critic={"backbone": "policy"}, kl={"coefficient": 0.0}, update=SMALL)
    small_run.run(tmp_path / "in", **same)
    by_recipe = config.ScoringPasses.of
    passes_with_one_for_values = lambda *args, **kwargs: replace(by_recipe(*args, **kwargs), values="policy")  # noqa: E731
    monkeypatch.setattr(config.ScoringPasses, "of", passes_with_one_for_values)
    small_run.run(tmp_path / "before", **same)
    small_run.assert_bitwise_equal(last_checkpoint(tmp_path / "in"), last_checkpoint(tmp_path / "before"))
    for ours, theirs in zip(reproducible(tmp_path / "in"), reproducible(tmp_path / "before"), strict=True):
        assert ours.keys() == theirs.keys()
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-9)


def test_a_credit_that_reads_other_rows_is_made_before_the_update(tmp_path):
    options = {"name": "ppo", "options": {"standardise": True}}
    small_run.run(tmp_path, algorithm=options, critic={"backbone": "policy"}, update=SMALL, kl={"coefficient": 0.0})
    assert "value/explained_variance" in metrics(tmp_path)[-1]


def test_a_critic_may_be_another_smaller_model_with_the_same_tokens_only(tmp_path):
    tokenizer = character_tokenizer()
    permuted = character_tokenizer()
    permuted.add_tokens(["<extra>"])
    for name, rows, tokens in (("smaller", 8, tokenizer), ("other", 8, permuted), ("short", -1, tokenizer)):
        model = tiny_model(seed=1, vocabulary=len(tokenizer) + rows, num_hidden_layers=1)
        save_model(model, tokens, tmp_path / name)
    small = changes("ppo, shared critic", critic={"backbone": str(tmp_path / "smaller")}, run={"steps": 2})
    small_run.run(tmp_path / "run", **small)
    saved = last_checkpoint(tmp_path / "run")
    assert {int(name.split("layers.")[1].split(".")[0]) for name in saved if "critic/decoder.layers." in name} == {0}
    for name in ("other", "short"):
        wrong = changes("ppo, shared critic", critic={"backbone": str(tmp_path / name)})
        with pytest.raises(ValueError, match=r"critic\.backbone: .* other tokens .* one tokenizer"):
            small_run.run(tmp_path / "wrong", **wrong)


def test_a_trust_region_run_keeps_no_optimizer_state_but_the_critics(whole):
    saved = last_checkpoint(whole("trpo")[0])
    assert not any(name.startswith("optimizer/exp_avg") for name in saved)
    assert any(name.startswith("critic_optimizer/exp_avg") for name in saved)


@pytest.mark.parametrize("name", ["trpo", "ppo, shared critic", "baseline, own critic"])
def test_recomputed_activations_change_no_step(whole, tmp_path, name):
    plain = {"update": SMALL | CASES[name].get("update", {}) | {"share_prompts": False}}
    small_run.run(tmp_path / "kept", **changes(name, **plain))
    checkpointed = {"path": "tiny", "gradient_checkpointing": True}
    small_run.run(tmp_path / "recomputed", **changes(name, **plain, model=checkpointed))
    kept, again = last_checkpoint(tmp_path / "kept"), last_checkpoint(tmp_path / "recomputed")
    assert all(
        (kept[n].float() - again[n].float()).abs().max() < 1e-4 for n in kept if n.startswith(("model/", "critic/"))
    )


@pytest.fixture
def fresh_accelerator():
    """Accelerate keeps the precision of the process's first run."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("name", ["ppo, shared critic", "baseline, own critic"])
@pytest.mark.usefixtures("fresh_accelerator")
def test_critics_train_in_bfloat16_arithmetic_on_float32_weights(tmp_path, name):
    small_run.run(tmp_path, **changes(name, model={"path": "tiny", "dtype": "bfloat16"}))
    saved = last_checkpoint(tmp_path)
    assert all(t.dtype == torch.float32 for n, t in saved.items() if n.startswith("critic/"))
    assert all(row["value/loss"] == row["value/loss"] for row in metrics(tmp_path))


@pytest.mark.parametrize("backbone", ["copy", "policy"])
def test_a_narrow_value_clip_changes_what_the_critic_learns(tmp_path, backbone):
    """From the second epoch on values have moved by more than the clip; what that does is proved for the function."""
    moved = {}
    rollout = {"prompts_per_step": 12, "samples_per_prompt": 1, "max_new_tokens": 3}
    for clip in (None, 1e-4):
        steps = {"epochs": 4}
        critic = {"backbone": backbone, "clip": clip, "optimizer": {"lr": 1e-2}} | (steps if backbone == "copy" else {})
        reward = [{"fn": f"{small_run.REWARDS}:seven_in_prompt"}]
        run = dict(
            algorithm={"name": "ppo"}, critic=critic, update=SMALL | steps, rewards=reward, optimizer={"lr": 1e-30}
        )
        small_run.run(tmp_path / str(clip), **run, rollout=rollout, kl={"coefficient": 0.0}, run={"steps": 2})
        moved[clip] = metrics(tmp_path / str(clip))[1]["value/mean"]
    assert moved[1e-4] != pytest.approx(moved[None], rel=0.01)


def test_a_rollout_step_that_was_cut_is_not_resumed_with_other_optimizer_steps(tmp_path, monkeypatch):
    def stopped(*_):
        raise Stopped("test")

    monkeypatch.setitem(loop.UPDATES, "gradient", stopped)
    small_run.run(tmp_path, **changes("ppo on an adapter"))
    monkeypatch.undo()
    again = {"run": {"resume": "auto"}}
    for other in ({"update": SMALL | {"epochs": 3}}, {"critic": CRITIC | {"minibatches": 1}}):
        with pytest.raises(ValueError, match=r"update\.epochs=2, .*critic\.minibatches=2, then change"):
            small_run.run(tmp_path, **changes("ppo on an adapter", **other, **again))
    assert small_run.run(tmp_path, **changes("ppo on an adapter", **again)) == 0
    slower = CRITIC | {"optimizer": {"lr": 1e-4}, "epochs": 1}
    more = {"run": {"resume": "auto", "steps": 4}}
    assert small_run.run(tmp_path, **changes("ppo on an adapter", critic=slower, **more)) == 0
    with pytest.raises(ValueError, match=r"critic\.backbone \(was copy, is policy\)"):
        small_run.run(tmp_path, **changes("ppo on an adapter", critic={"backbone": "policy"}, **more))


def test_a_value_gradient_that_is_not_finite_leaves_policy_and_head_where_they_were(tmp_path, monkeypatch):
    def breaks(*_):
        raise FloatingPointError("head")

    monkeypatch.setattr(gradient_step, "prepare_critic_step", breaks)
    with pytest.raises(FloatingPointError, match="head"):
        small_run.run(tmp_path / "run", **changes("ppo, shared critic"))
    monkeypatch.undo()
    small_run.run(tmp_path / "start", **changes("ppo, shared critic", run={"steps": 0}))
    start, cut = last_checkpoint(tmp_path / "start"), last_checkpoint(tmp_path / "run")
    assert all(torch.equal(start[name], cut[name]) for name in start if name.startswith(("model/", "critic/")))


def test_a_record_that_gives_its_critic_nothing_to_learn_is_refused(tmp_path, monkeypatch):
    (tmp_path / "forgetful.py").write_text(
        "from dataclasses import replace\nfrom rlhf_pg.algorithms import ppo\n"
        "def credit(*a):\n    return replace(ppo.credit(*a), returns=None)\n"
        "algorithm = replace(ppo.algorithm, name='forgetful', credit=credit)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="forgetful has needs_critic, but its credit has no `returns`"):
        small_run.run(tmp_path / "run", algorithm={"name": "forgetful:algorithm"})


def test_equal_returns_have_no_explained_variance(tmp_path):
    reward = [{"fn": f"{small_run.REWARDS}:always_one"}]
    small_run.run(tmp_path, **changes("trpo", rewards=reward, kl={"coefficient": 0.0}))
    assert all("value/explained_variance" not in row and "value/mean" in row for row in metrics(tmp_path))


def test_the_policys_schedule_spans_the_steps_that_the_warm_up_leaves_it(tmp_path):
    settings = changes("baseline, own critic", optimizer={"lr": 1e-3, "schedule": "linear"})
    small_run.run(tmp_path, **settings)
    assert [row.get("lr") for row in metrics(tmp_path)] == [None, pytest.approx(1e-3), pytest.approx(0.5e-3)]


IN_UPDATE = {"algorithm": {"name": "reinforce_baseline"}, "critic": {"backbone": "policy"}, "kl": {"coefficient": 0.0}}


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({}, True),
        ({"critic": {"backbone": "copy"}}, False),
        ({"algorithm": {"name": "reinforce_baseline", "options": {"standardise": True}}}, False),
        ({"kl": IN_REWARD}, False),
        ({"algorithm": {"name": "ppo", "options": {"standardise": False}}, "update": {"epochs": 2}}, False),
    ],
)
def test_values_come_from_the_update_only_where_that_is_the_same(tmp_path, other, expected):
    session = setup.build(small_run.recipe(tmp_path, **(IN_UPDATE | other)))
    try:
        assert (session.learner.passes.values == "update") is expected
    finally:
        session.close()
