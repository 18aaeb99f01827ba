"""The noise of gradient estimators: their gradients are the trainer's, measuring changes nothing, order is seen."""

import json
import statistics
from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch

from rlhf_pg import cli
from rlhf_pg.commands import variance as variance_command
from rlhf_pg.config import KL
from rlhf_pg.data import collate
from rlhf_pg.display.live import LiveView
from rlhf_pg.distributed.interrupt import StopRequest
from rlhf_pg.report import variance as variance_page
from rlhf_pg.training import gradient_step, loop, setup, variance
from rlhf_pg.training.learner import Objective
from rlhf_pg.training.resume import Progress
from rlhf_pg.training.setup import build
from tests.training import small_run

REINFORCE = {"algorithm": {"name": "reinforce"}}
PPO = {"algorithm": {"name": "ppo"}}
IN_REWARD = {"coefficient": 0.05, "placement": "reward", "estimator": "k1"}
NO_KL = {"coefficient": 0.0}
EXACT = ["trajectory return", "reward-to-go", "leave-one-out", "critic", "RLOO"]
DENSE = [{"fn": "recipes/toy_reward.py:sevens"}]
SHARED = {"critic": {"backbone": "policy"}}
CASES = {
    "no critic": REINFORCE | {"kl": IN_REWARD},
    "own critic": PPO | {"kl": IN_REWARD},
    "shared critic": PPO | SHARED | {"kl": IN_REWARD},
    "values made in the update": SHARED | {"algorithm": {"name": "reinforce_baseline"}, "rewards": DENSE},
}


# ---- the gradients of a real session


@pytest.fixture
def opened(tmp_path):
    """A function from changes of the small recipe to a session; they are closed when the test ends."""
    with ExitStack() as stack:

        def build_one(**changes):
            session = build(small_run.recipe(tmp_path / "run", **changes))
            stack.callback(session.close)
            return session

        yield build_one


def run_of(session, steps=3):
    """After a few steps: some rewards were found, so the KL and the gradients are not 0."""
    made = loop.TrainingRun(session, variance._NoRunDir(), LiveView(1, "off"), StopRequest(), Progress())  # pyright: ignore[reportArgumentType]
    for _ in range(steps):
        loop.train_step(made)
    return made


@pytest.mark.parametrize("tokens", [16384, 12], ids=["one forward", "micro-batches within a group"])
@pytest.mark.parametrize("excluded", [(), (1, 6, 7)], ids=["whole groups", "some samples excluded"])
@pytest.mark.parametrize("name", ["trajectory return", "critic", "GAE 0.95", "group mean", "GRPO"])
def test_the_mean_of_the_groups_gradients_is_the_gradient_the_trainer_takes(opened, name, tokens, excluded):
    changes = PPO | {"kl": IN_REWARD, "update": {"epochs": 2, "tokens_per_microbatch": tokens}}
    session = opened(**changes)
    made = run_of(session)
    learner = session.learner
    pending, chosen = loop.roll_out(made), torch.tensor([i for i in range(16) if i not in excluded])
    batch = collate.select(pending.batch, chosen)
    signals = gradient_step.select_rows(pending.signals, chosen, batch)
    (rung,) = [r for r in variance.ladder(learner, 4)[0] if r.estimator.name == name]
    credit = rung.record.credit(batch, signals)
    groups = [
        next(variance.group_gradients(learner, batch, signals, [rung], [credit], g, samples=4))
        for g in range(len(batch.prompt_lengths))
    ]
    objective = Objective(rung.record, KL(coefficient=0), 6)
    trained = replace(learner, objective=objective, critic=None)
    gradient_step.zero_grad(trained)
    gradient_step.accumulate(trained, batch, signals, credit, torch.arange(len(batch.group)))
    expected = torch.cat([p.grad.reshape(-1) for p in learner.parameters if p.grad is not None])
    assert len(groups) == 4 and expected.norm() > 1e-6
    found = torch.stack(groups).mean(dim=0) * 16 / len(chosen)  # the trainer divides by the rows there are
    assert (found - expected).norm() / expected.norm() < 1e-5


def test_several_estimators_from_one_forward_are_each_as_if_alone(opened):
    session = opened(**PPO, kl=IN_REWARD)
    made = run_of(session)
    pending = loop.roll_out(made)
    given = pending.batch, pending.signals
    rungs, notes = variance.ladder(session.learner, 4)
    credits = [r.record.credit(*given) for r in rungs]
    together = list(variance.group_gradients(session.learner, *given, rungs, credits, 2, samples=4))
    assert len(together) == 8 and notes == []
    for rung, credit, found in zip(rungs, credits, together, strict=True):
        (alone,) = variance.group_gradients(session.learner, *given, [rung], [credit], 2, samples=4)
        assert torch.equal(found, alone)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_measuring_leaves_weights_gradients_optimizers_and_data_as_they_were(opened, case):
    session = opened(**case)
    made = run_of(session)
    learner = session.learner
    rungs, _ = variance.ladder(learner, 4)

    def everything():
        optimizers = [learner.optimizer] + ([learner.critic.optimizer] if learner.critic else [])
        modules = [session.model] + ([learner.critic.module] if learner.critic else [])
        state = [t.clone() for m in modules for t in m.state_dict().values()]
        state += [v.clone() for o in optimizers for s in o.state.values() for v in s.values()]
        state += [p.grad.clone() for m in modules for p in m.parameters() if p.grad is not None]
        return state, session.sampler.state(), made.progress.step, learner.updates, torch.get_rng_state()

    state, *numbers, random = everything()
    first, _ = variance.gradients(made, rungs, 6)
    again, *numbers_after, random_after = everything()
    assert len(state) == len(again) and all(torch.equal(a, b) for a, b in zip(state, again, strict=True))
    assert numbers == numbers_after and torch.equal(random, random_after)
    second, _ = variance.gradients(made, rungs, 6)
    assert torch.equal(first, second) and float(first.norm()) > 0


def test_measured_weights_are_those_the_trainer_has_after_as_many_steps(tmp_path, opened):
    changes = PPO | {"kl": IN_REWARD | {"target": 1e-4, "horizon": 20}, "update": {"minibatches": 2}}
    small_run.run(tmp_path / "trained", **changes)
    session = opened(**changes)
    result = variance.measure(session, 3, 4)
    trained = small_run.final_weights(tmp_path / "trained")
    mine = session.model.state_dict()
    assert all(torch.equal(mine[name], trained[name]) for name in trained)
    assert not (tmp_path / "run").exists()
    assert result["reward/kl_penalty"] != 0


def test_the_kl_penalty_is_the_one_of_the_adapted_coefficient(opened):
    session = opened(kl=IN_REWARD | {"target": 1e-4, "horizon": 1000}, **REINFORCE)
    made = run_of(session)
    rungs = variance.ladder(session.learner, 4)[0][:1]
    session.learner.kl_coefficient = 1.0
    whole = variance.gradients(made, rungs, 4)[1]["reward/kl_penalty"]
    session.learner.kl_coefficient = 3.0
    assert variance.gradients(made, rungs, 4)[1]["reward/kl_penalty"] == pytest.approx(3 * whole, rel=1e-3)
    assert abs(whole) > 1e-6


def test_the_critic_is_judged_by_the_returns_it_is_fitted_to(opened):
    session = opened(rewards=DENSE, kl=NO_KL, algorithm={"name": "reinforce_baseline"})
    made = run_of(session)
    _, facts = variance.gradients(made, variance.ladder(session.learner, 4)[0], 4)
    pending = loop.roll_out(made)  # the same again: the data cursor went back
    values, returns = [], []
    for b, length in enumerate(pending.batch.mask.sum(dim=1).tolist()):
        rewards = pending.signals.token_reward[b].tolist()
        returns += [sum(rewards[t:length]) for t in range(length)]
        values += [] if pending.signals.value is None else pending.signals.value[b, :length].tolist()
    missed = statistics.pvariance([r - v for r, v in zip(returns, values, strict=True)])
    assert facts["value/explained_variance"] == pytest.approx(1 - missed / statistics.pvariance(returns), rel=1e-3)


def test_measured_groups_are_fresh_ones_and_as_many_as_asked(opened, monkeypatch):
    session = opened(**REINFORCE)
    made = run_of(session, steps=0)
    seen, streams, collected = [], [], loop.collect.rollouts

    def spy(engine, scorer, tokenizer, prompts, sampling, **options):
        streams.append(sampling.step)
        rollouts = collected(engine, scorer, tokenizer, prompts, sampling, **options)
        seen.append({(r.prompt.id, tuple(r.completion.tokens.tolist())) for r in rollouts})
        return rollouts

    monkeypatch.setattr(loop.collect, "rollouts", spy)
    loop.train_step(made)
    found, facts = variance.gradients(made, variance.ladder(session.learner, 4)[0], 6)
    assert found.shape[1] == 6 and facts["rollouts"] == 24  # of two rounds of four prompts
    assert streams == [1, 2, 3]  # each with random streams of its own
    assert len({prompt for round in seen for prompt, _ in round}) == 12


def test_with_rewards_on_the_last_token_only_two_rungs_coincide_and_the_result_says_so(opened):
    result = variance.measure(opened(kl=NO_KL, **REINFORCE), 3, 16)
    assert (
        "trajectory return and reward-to-go coincide here: their gradients differ by 0.0e+00 of their size"
        in (result["notes"])
    )
    (step,) = [s for s in result["rungs"] if s["to"] == "reward-to-go"]
    assert (step["ratio"], *step["interval"]) == pytest.approx((1, 1, 1))
    dense = variance.measure(opened(kl=NO_KL, rewards=DENSE, **REINFORCE), 3, 16)
    assert not any("trajectory return and" in note for note in dense["notes"])


def test_estimators_that_the_run_cannot_have_are_left_out_by_name(opened):
    rungs, notes = variance.ladder(opened(rollout={"samples_per_prompt": 1}, **REINFORCE).learner, 1)
    assert [r.estimator.name for r in rungs] == ["trajectory return", "reward-to-go"]
    assert "critic is left out: the recipe's algorithm has no critic" in notes
    assert "GRPO is left out: rollout.samples_per_prompt is 1" in notes


def test_projected_gradients_give_nearly_the_whole_ones_figures_and_say_so(opened, monkeypatch):
    changes = PPO | {"rewards": DENSE, "kl": IN_REWARD}
    whole = variance.measure(opened(**changes), 1, 16)
    monkeypatch.setattr(variance, "MEMORY", 4 * 8 * 16 * 50_000)
    sketched = variance.measure(opened(**changes), 1, 16)
    assert (sketched["kept"], whole["kept"]) == (50_000, whole["parameters"])
    assert any("random projections to 50,000" in note for note in sketched["notes"])
    for a, b in zip(whole["estimators"], sketched["estimators"], strict=True):
        assert b["variance"] == pytest.approx(a["variance"], rel=0.02)
        assert b["signal"] == pytest.approx(a["signal"], abs=0.05 * a["trace"])
        assert statistics.fmean(b["cosines"]) == pytest.approx(statistics.fmean(a["cosines"]), abs=0.03)


# ---- the command


def test_on_the_shipped_recipe_the_order_of_the_ladder_is_beyond_the_noise(tmp_path, capsys):
    arguments = ["variance", "recipes/toy_reinforce_baseline.yaml", f"run.dir={tmp_path}/run", "run.seed=5"]
    assert cli.main([*arguments, "--after", "6", "--groups", "48", "--out", f"{tmp_path}/out"]) == 0
    result = json.loads((tmp_path / "out" / "variance.json").read_text())
    steps = {(s["from"], s["to"]): s for s in result["rungs"]}
    for pair in [("trajectory return", "reward-to-go"), ("reward-to-go", "leave-one-out"), ("reward-to-go", "critic")]:
        assert steps[pair]["interval"][1] < 1
    rows = {row["name"]: row for row in result["estimators"]}
    least = min(EXACT, key=lambda name: rows[name]["variance"])
    assert result["large_sample_gradient"] == least and rows["group mean"]["variance"] < rows[least]["variance"]
    assert result["reward/kl_penalty"] > 0
    assert {row["options"]["denominator"] for row in rows.values()} == {"constant"}
    assert not any(row["options"]["standardise"] for row in rows.values())
    shrunk = rows["group mean"]["variance"] / rows["leave-one-out"]["variance"]
    assert shrunk == pytest.approx((7 / 8) ** 2, rel=1e-3)  # groups of 8: exactly 7/8 of the gradient
    assert rows["group mean"]["snr"] == pytest.approx(rows["leave-one-out"]["snr"], rel=1e-3)
    assert rows["GRPO"]["to_reward_to_go"] is None
    assert (tmp_path / "out" / "variance.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "run").exists()
    printed = capsys.readouterr().out
    table_rows = [line for line in printed.splitlines() if "[" in line and "of the variance" not in line]
    assert len(table_rows) >= 7 and max(map(len, table_rows)) <= 80
    assert printed.splitlines()[-2].startswith(str(tmp_path)) and "Least noisy: " in printed
    assert rows[least]["to_least_noisy"][0] == 1 and rows["GRPO"]["to_least_noisy"] is None
    assert "leave-one-out / reward-to-go: 0." in printed and f"{tmp_path}/out/variance.json" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--groups", "1"], "--groups 1: a variance needs at least 2 groups"),
        (["--after", "-1"], "--after -1: the recipe's run has steps 0 to 60"),
        (["--after", "61"], "--after 61: the recipe's run has steps 0 to 60"),
        (["--out", "{folder}/held"], "held holds a run (metrics.jsonl): choose another folder"),
        (["--out", "{folder}/file"], "file cannot be made: File exists; choose another folder"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_built(tmp_path, monkeypatch, capsys, options, message):
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "metrics.jsonl").touch()
    (tmp_path / "file").touch()
    monkeypatch.setattr(setup, "build", None)
    given = [o.format(folder=tmp_path) for o in options]
    arguments = ["variance", "recipes/toy_reinforce.yaml", f"run.dir={tmp_path}/run", *given]
    assert cli.main(arguments) == cli.USAGE
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [((0.4, 0.9), "less"), ((1.1, 2.0), "more"), ((0.9, 1.2), "not distinguishable from 1")],
)
def test_a_rung_is_judged_by_its_whole_interval(interval, verdict):
    line = variance_page.step_line({"from": "a", "to": "b", "ratio": 0.95, "interval": interval})
    assert line.startswith("b / a: 0.950 [") and line.endswith(f"] of the variance, {verdict}")


def estimated(name, to_reward_to_go, to_least_noisy, **options):
    return {
        "name": name,
        "algorithm": "reinforce_baseline",
        "options": options,
        "to_reward_to_go": to_reward_to_go,
        "to_least_noisy": to_least_noisy,
    }


ONE = (1.0, (1.0, 1.0))


@pytest.mark.parametrize(
    ("least", "other", "says"),
    [
        (
            (0.125, (0.1, 0.2)),
            (1.5, (1.2, 1.9)),
            "8 times less variance than reward-to-go (95 %: 5 to 10); beyond chance the least of all.",
        ),
        (
            (0.5, (0.4, 0.625)),
            (1.1, (0.9, 1.3)),
            "2 times less variance than reward-to-go (95 %: 1.6 to 2.5); not to be told from RLOO; try more --groups.",
        ),
        (
            (0.9, (0.8, 1.2)),
            (1.1, (1.05, 1.3)),
            "0.9 of reward-to-go's variance, which may be chance (95 %: 0.8 to 1.2); beyond chance the least of all.",
        ),
    ],
)
def test_the_first_line_names_the_least_noisy_estimator_by_how_much_and_how_sure(least, other, says):
    rows = [
        estimated("leave-one-out", least, ONE, baseline="leave_one_out", gamma=1.0),
        estimated("RLOO", (0.5, (0.4, 0.6)), other),
        estimated("GRPO", None, None),
    ]
    line = variance_page.recommendation({"estimators": rows, "large_sample_gradient": "leave-one-out"})
    assert line == f"Least noisy: leave-one-out (algorithm.name=reinforce_baseline, baseline=leave_one_out): {says}"


def test_the_end_of_the_run_may_be_measured_and_the_default_folder_lies_beside_the_runs(tmp_path):
    recipe = small_run.recipe(tmp_path / "run")
    assert variance_command.checked(recipe, after=3) == (3, 256, tmp_path / "variance_run")
    assert (tmp_path / "variance_run").is_dir()


def test_a_run_folder_that_is_a_file_and_a_recipe_without_rewards_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(setup, "build", None)
    (tmp_path / "run").touch()
    assert cli.main(["variance", "recipes/toy_reinforce.yaml", f"run.dir={tmp_path}/run"]) == cli.USAGE
    assert "run is a file; a run needs a folder of its own" in " ".join(capsys.readouterr().err.split())
    assert cli.main(["variance", "recipes/toy_reinforce.yaml", "rewards=[]"]) == cli.USAGE
    assert "rewards" in capsys.readouterr().err
