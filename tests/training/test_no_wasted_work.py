"""What need not be computed is not, and nothing that is learned changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from accelerate.state import AcceleratorState

from rlhf_pg.algorithms.base import resolve
from rlhf_pg.config import KL, Critic, Optimizer, ScoringPasses, Update
from rlhf_pg.distributed.backend import Backend
from rlhf_pg.models.policy import Policy
from rlhf_pg.training import gradient_step
from rlhf_pg.training.learner import Learner, Objective
from rlhf_pg.training.precompute import log_probs, signals, terminal_reward
from rlhf_pg.types import Batch, Signals
from tests.random_models import random_batch, random_model
from tests.tolerance import in_float64
from tests.training import small_run

UPDATE = Update(tokens_per_microbatch=2048)


def learner(name: str = "grpo", kl: float = 0.0, update: Update | None = None, options=None, **record) -> Learner:
    algorithm = replace(resolve(name), **record)
    policy = Policy(in_float64(random_model()))
    objective = Objective(algorithm.bind(options or {}), KL(coefficient=kl), max_length=6)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2)
    passes = ScoringPasses.of(objective.algorithm, objective.kl, update or UPDATE, Critic(), engine_is_trainer=False)
    settings = update or UPDATE, Optimizer()
    return Learner(policy, optimizer, Backend(), objective, *settings, seed=0, total_updates=9, passes=passes)


def forwarded(under: Learner) -> list[int]:
    """Rows of every forward of the policy from now on."""
    rows: list[int] = []
    under.policy.register_forward_pre_hook(lambda _, args: rows.append(len(args[0].group)))
    return rows


def accumulated(under: Learner, batch: Batch, signal: Signals) -> tuple[torch.Tensor, dict[str, float]]:
    algorithm = under.objective.algorithm
    credit = algorithm.credit(batch, signal)
    metrics = gradient_step.accumulate(under, batch, signal, credit, torch.arange(len(batch.group)))
    assert all(p.grad is not None for p in under.parameters)
    return torch.cat([p.grad.flatten() for p in under.parameters if p.grad is not None]), metrics


@pytest.fixture
def half_equal() -> Batch:
    """Two of three groups have equal rewards, so advantages of exactly 0."""
    batch = random_batch(prompts=3, samples=4)
    return replace(batch, reward=torch.tensor([1.0] * 4 + [0.0, 1.0, 1.0, 0.0] + [0.0] * 4))


@pytest.mark.parametrize("name", ["grpo", "rloo", "reinforce"])
@pytest.mark.parametrize("denominator", ["token", "sequence", "constant"])
def test_rows_without_advantage_are_not_forwarded_and_the_gradient_is_the_same(name, denominator, half_equal):
    options = {"denominator": denominator}
    under, whole = learner(name, options=options), learner(name, options=options, zero_without_advantage=False)
    made = Signals(terminal_reward(half_equal), logp_old=log_probs(under.policy, half_equal, UPDATE) - 0.1)
    rows, every = forwarded(under), forwarded(whole)
    found, metrics = accumulated(under, half_equal, made)
    expected, _ = accumulated(whole, half_equal, made)
    assert sum(every) == 12 and sum(rows) == (6 if name == "reinforce" else 4)
    assert (found - expected).norm() < 1e-12 * expected.norm() and expected.norm() > 1e-3
    kept = half_equal.reward > 0 if name == "reinforce" else half_equal.group == 1
    assert (
        metrics["tokens/forwarded"]
        <= metrics["tokens/needed"]
        == int(half_equal.mask[kept].sum()) + int(half_equal.prompt_lengths[half_equal.group[kept].unique()].sum())
    )


def test_where_no_row_has_an_advantage_the_gradient_is_zeros_so_that_the_optimizer_steps_as_ever(half_equal):
    batch = replace(half_equal, reward=torch.ones(12))
    under = learner()
    rows = forwarded(under)
    gradient, metrics = accumulated(under, batch, Signals(terminal_reward(batch)))
    assert rows == [1] and not gradient.any() and metrics["loss"] == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"kl": 0.1},
        {"update": Update(max_kl=0.1, epochs=2, tokens_per_microbatch=99)},
        {"zero_without_advantage": False},
    ],
)
def test_every_row_is_forwarded_where_something_else_is_learned_or_measured_on_it(changes, half_equal):
    under = learner(**changes)
    reference = torch.full_like(half_equal.logp_rollout, -3.0)
    made = Signals(terminal_reward(half_equal), logp_old=reference, logp_ref=reference if "kl" in changes else None)
    rows = forwarded(under)
    accumulated(under, half_equal, made)
    assert sum(rows) == 12


def test_an_objective_of_ones_own_is_forwarded_whole_unless_it_says_otherwise():
    from rlhf_pg.algorithms.base import Algorithm

    assert Algorithm("mine", lambda *_: None, lambda *_: None).zero_without_advantage is False  # pyright: ignore


def test_the_engines_own_log_probs_stand_for_the_old_ones_without_a_pass():
    batch = random_batch(holes=True)
    under = learner(update=Update(epochs=2, tokens_per_microbatch=99))
    batch = replace(batch, logp_rollout=torch.where(batch.mask, log_probs(under.policy, batch, UPDATE), torch.nan))
    by_pass = signals(under, None, batch).logp_old
    under.passes = replace(under.passes, old="engine")
    rows = forwarded(under)
    reused = signals(under, None, batch).logp_old
    assert rows == [] and reused is not None and by_pass is not None
    torch.testing.assert_close(reused, by_pass)
    under = learner(update=UPDATE)
    assert signals(under, None, batch).logp_old is None  # one optimizer step: it is logp itself


def test_in_a_run_only_live_float32_weights_give_the_old_log_probs(tmp_path):
    from rlhf_pg.training.setup import build

    for dtype, expected in (("float32", True), ("bfloat16", False)):
        AcceleratorState._reset_state(reset_partial_state=True)  # one precision a process, else
        session = build(small_run.recipe(tmp_path, model={"dtype": dtype}, update={"epochs": 2}))
        assert (session.learner.passes.old == "engine") is expected
        session.close()
    AcceleratorState._reset_state(reset_partial_state=True)


def test_an_update_that_nobody_settled_is_refused_instead_of_guessed():
    assert Update(tokens_per_microbatch=77).positions == 77
    with pytest.raises(ValueError, match="not settled"):
        _ = Update().positions
