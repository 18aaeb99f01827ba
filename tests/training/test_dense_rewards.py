"""Rewards of single tokens in a run: in its signals, through a checkpoint, and as docs/rewards.md shows them."""

import json
import re
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rlhf_pg.cli import main
from rlhf_pg.models.tokenizer import character_tokenizer
from rlhf_pg.storage import checkpoint
from rlhf_pg.training import loop
from rlhf_pg.training.precompute import terminal_reward
from rlhf_pg.training.resume import restore
from rlhf_pg.training.setup import build
from tests.random_models import random_batch
from tests.training import small_run

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "rewards.md"
REWARDS = """
def digits(token_texts):
    return [float(text.isdigit()) for text in token_texts]

def flat(completion_tokens):
    return 0.5

def right_or_limit_4(completion, answer, max_new_tokens):
    return float(max_new_tokens == 4 or (max_new_tokens == 6 and completion == answer))

def limit(max_new_tokens):
    return max_new_tokens
"""


def test_a_reward_is_on_its_token_and_the_rest_of_the_row_on_the_last_sampled_one():
    batch = replace(
        random_batch(prompts=1, samples=3),
        mask=torch.tensor([[True, True, True, False], [True, False, True, False], [True, True, True, True]]),
        logp_rollout=torch.zeros(3, 4),
        reward=torch.tensor([2.0, 0.25, -1.0]),
        token_reward=torch.tensor([[0.5, 0.0, 0.25, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]),
    )
    expected = [[0.5, 0.0, 1.5, 0.0], [1.0, 0.0, -0.75, 0.0], [0.0, 0.0, 0.0, -1.0]]
    assert terminal_reward(batch).tolist() == expected


def test_without_rewards_of_single_tokens_all_is_on_the_last_sampled_one():
    batch = replace(
        random_batch(prompts=1, samples=2),
        mask=torch.tensor([[True, True, False], [True, False, True]]),
        logp_rollout=torch.full((2, 3), -7.0),
        reward=torch.tensor([2.0, 0.1]),
    )
    assert terminal_reward(batch).tolist() == [[0.0, 2.0, 0.0], [0.0, 0.0, pytest.approx(0.1)]]


def test_a_row_of_rewards_sums_to_the_reward_of_the_row():
    batch = random_batch(prompts=4, samples=8, seed=3)
    given = torch.randn(batch.mask.shape, generator=torch.Generator().manual_seed(0)) * batch.mask
    sums = [sum(row) for row in terminal_reward(replace(batch, token_reward=given)).tolist()]
    assert sums == pytest.approx(batch.reward.tolist(), abs=1e-5)


@pytest.fixture
def rewards(tmp_path):
    """By the name of the function, what a recipe lists."""
    (tmp_path / "mine.py").write_text(REWARDS)
    names = ("digits", "flat", "right_or_limit_4", "limit")
    return {name: [{"fn": f"{tmp_path / 'mine.py'}:{name}", "weight": 2.0}] for name in names}


def stop_once_rolled_out(monkeypatch):
    """SIGTERM arrives when the first rollouts are scored and nothing is learned from them."""

    def roll_out(run, whole=loop.roll_out):
        pending = whole(run)
        run.stop.request("test")
        return pending

    monkeypatch.setattr(loop, "roll_out", roll_out)


@pytest.mark.parametrize("name", ["digits", "flat"])
def test_rollouts_that_are_not_fully_learned_from_keep_their_rewards_of_tokens(tmp_path, monkeypatch, rewards, name):
    changes = {"rewards": rewards[name], "update": {"epochs": 2, "minibatches": 2}}
    stop_once_rolled_out(monkeypatch)
    assert small_run.run(tmp_path / "run", **changes) == 130
    session = build(small_run.recipe(tmp_path / "run", **changes))
    newest = checkpoint.latest(tmp_path / "run" / "checkpoints")
    assert newest is not None
    pending = restore(session, *checkpoint.load(newest)).pending
    session.close()
    assert pending is not None
    given = pending.batch.token_reward
    if name == "flat":
        assert given is None
        return
    ids = torch.tensor(character_tokenizer()("0123456789").input_ids)
    expected = 2.0 * (torch.isin(pending.batch.tokens, ids) & pending.batch.mask)
    assert expected.any() and given is not None and given.tolist() == expected.tolist()
    assert pending.signals.token_reward.tolist() == given.tolist()


def test_a_run_with_rewards_of_tokens_cut_in_an_update_ends_bitwise_the_same(tmp_path, monkeypatch, rewards):
    changes = {"rewards": rewards["digits"], "update": {"epochs": 2, "minibatches": 2}}
    small_run.run(tmp_path / "whole", **changes)
    stop_once_rolled_out(monkeypatch)
    assert small_run.run(tmp_path / "cut", **changes) == 130
    monkeypatch.undo()
    assert small_run.run(tmp_path / "cut", **changes, run={"resume": "auto"}) == 0
    whole, cut = (small_run.final_weights(tmp_path / folder) for folder in ("whole", "cut"))
    small_run.assert_bitwise_equal(whole, cut)


def test_training_evaluation_and_preflight_each_tell_their_limit(tmp_path, rewards):
    """Preflight holds gold answers, which must be right; an evaluated sample is right when its limit is 4."""
    prompts = {"task": "arithmetic", "options": {"count": 24}}
    small_run.run(
        tmp_path / "run",
        run={"steps": 1, "preflight": True},
        rewards=[*rewards["right_or_limit_4"], *rewards["limit"]],
        data={"eval": prompts},
        eval={"samples": 2, "k": [1], "max_new_tokens": 4},
    )
    (step,) = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    after = json.loads((tmp_path / "run" / "summary.json").read_text())["after"]
    assert (step["reward/limit"], after["pass@1"], after["greedy"]) == (6, 1.0, 1.0)


def test_the_example_of_the_documentation_runs_as_printed_and_learns(tmp_path, monkeypatch):
    section = DOCUMENTATION.read_text().split("## Rewards for single tokens")[1].split("\n## ")[0]
    files = re.findall(r"```(?:python|yaml)\n(# (\S+)\n.*?)```", section, re.DOTALL)
    assert [name for _, name in files] == ["digits.py", "digits.yaml"]
    for text, name in files:
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    (command,) = re.findall(r"`rlhf-pg ([^`]+)`", section)
    assert main(command.split()) == 0
    earned = [json.loads(line)["reward/digits"] for line in Path("runs/digits/metrics.jsonl").read_text().splitlines()]
    assert earned[0] < 0.05
    assert statistics.fmean(earned[-20:]) > 0.08
