"""The gradient is a property of the batch: how rows are split, ordered, padded or shared cannot change it."""

from dataclasses import replace

import pytest
import torch

from rlhf_pg import functional as F
from rlhf_pg.algorithms.base import resolve
from rlhf_pg.config import KL, Mismatch, Optimizer, Update
from rlhf_pg.data import collate
from rlhf_pg.distributed.backend import Backend
from rlhf_pg.models.policy import Policy
from rlhf_pg.training import gradient_step
from rlhf_pg.training.learner import Learner, Objective
from rlhf_pg.training.precompute import frozen_copy, log_probs, terminal_reward
from rlhf_pg.types import Signals
from tests.random_models import random_batch, random_model
from tests.tolerance import in_float64

UPDATE = Update(tokens_per_microbatch=2048)

LENGTH = 6

NO_ALARM = Mismatch()


def gradient(
    batch, *, denominator="sequence", tokens=10_000, share=True, seed=0, cap=None, mismatch=NO_ALARM, dropped=None
):
    """All parameters' gradients of one GRPO step with a KL term, in float64 throughout."""
    model = in_float64(random_model(seed=seed))
    reference = frozen_copy(Policy(in_float64(random_model(seed=seed + 1)), temperature=0.9))
    policy = Policy(model, temperature=0.9, share_prompts=share)
    algorithm = resolve("grpo")
    bound = algorithm.bind({"denominator": denominator})
    learner = Learner(
        policy=policy,
        optimizer=torch.optim.SGD(policy.parameters(), lr=0.0),
        backend=Backend(),
        objective=Objective(bound, KL(coefficient=0.1), LENGTH),
        update=Update(
            tokens_per_microbatch=tokens, share_prompts=share, mismatch=mismatch.model_copy(update={"cap": cap})
        ),
        optimization=Optimizer(),
        seed=0,
        total_updates=1,
    )
    batch = replace(batch, reward=batch.reward.double(), logp_rollout=batch.logp_rollout.double())
    signals = Signals(
        terminal_reward(batch), log_probs(policy, batch, UPDATE) + 0.01, log_probs(reference, batch, UPDATE)
    )
    credit = bound.credit(batch, signals)
    if dropped is not None:
        credit = replace(credit, advantage=torch.where(dropped[:, None], 0, credit.advantage))
    rows = torch.arange(len(batch.group))
    metrics = gradient_step.accumulate(learner, batch, signals, credit, rows)
    return flat_gradient(model), metrics


def flat_gradient(model):
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def assert_same(a, b):
    """Equal to the rounding of float64."""
    assert (a - b).norm() / a.norm() < 1e-12


@pytest.mark.parametrize("denominator", ["token", "sequence", "constant"])
@pytest.mark.parametrize("tokens", [1, 9, 14, 25, 60])
def test_micro_batch_budget_does_not_change_the_gradient(denominator, tokens):
    batch = random_batch()
    whole, whole_metrics = gradient(batch, denominator=denominator, cap=1.5)
    split, split_metrics = gradient(batch, denominator=denominator, tokens=tokens, cap=1.5)
    assert_same(whole, split)
    for name in ("loss", "entropy", "kl/ref", "clip/fraction", "mismatch/ess", "mismatch/capped"):
        assert split_metrics[name] == pytest.approx(whole_metrics[name], rel=1e-5, abs=1e-9)


def test_row_order_does_not_change_the_gradient():
    batch = random_batch()
    order = torch.randperm(len(batch.group), generator=torch.Generator().manual_seed(1))
    shuffled = replace(
        batch, **{k: getattr(batch, k)[order] for k in ("group", "tokens", "mask", "reward", "logp_rollout")}
    )
    assert_same(gradient(batch)[0], gradient(shuffled, tokens=20)[0])


def test_extra_padding_even_of_nan_does_not_change_the_gradient():
    batch = random_batch()
    pad = torch.nn.functional.pad
    padded = replace(
        batch,
        prompt_tokens=pad(batch.prompt_tokens, (0, 3), value=5),
        tokens=pad(batch.tokens, (0, 4), value=7),
        mask=pad(batch.mask, (0, 4), value=False),
        logp_rollout=pad(batch.logp_rollout, (0, 4), value=float("nan")),
    )
    assert_same(gradient(batch)[0], gradient(padded)[0])
    weighted, metrics = gradient(batch, cap=1.5)
    padded_weighted, padded_metrics = gradient(padded, cap=1.5)
    assert_same(weighted, padded_weighted)
    assert padded_metrics["mismatch/ess"] == pytest.approx(metrics["mismatch/ess"])


@pytest.mark.parametrize("tokens", [9, 10_000])
def test_prompt_sharing_does_not_change_the_gradient(tokens):
    batch = random_batch()
    assert_same(gradient(batch, share=False)[0], gradient(batch, share=True, tokens=tokens)[0])


@pytest.mark.parametrize("cap", [None, 1.5])
def test_the_gradient_is_that_of_the_formula_written_out_row_by_row(cap):
    """An independent loop: rows one by one, the paper's formula, no shared code but the policy's log-probs.

    Importance weights multiply the surrogate, not the KL.
    """
    batch = random_batch()
    weights = []
    model, reference = in_float64(random_model()), in_float64(random_model(seed=1))
    policy, frozen = Policy(model, 0.9, share_prompts=False), Policy(reference, 0.9, share_prompts=False)
    rows = len(batch.group)
    loss = torch.zeros((), dtype=torch.float64)
    for b in range(rows):
        peers = batch.reward[batch.group == batch.group[b]].double()
        advantage = (batch.reward[b].double() - peers.mean()) / (peers.std() + 1e-4)
        one = collate.select(batch, torch.tensor([b]))
        logp = policy(one)[0][one.mask]
        with torch.no_grad():
            old, ref = logp.detach() + 0.01, frozen(one)[0][one.mask]
        rho = (logp - old).exp()
        weight = torch.ones_like(old)
        if cap:
            weight = (old.exp() / one.logp_rollout[one.mask].double().exp()).clamp(max=cap)
        weights += weight.tolist()
        surrogate = weight * torch.minimum(rho * advantage, rho.clamp(0.8, 1.2) * advantage)
        k3 = (ref - logp).exp() - 1 - (ref - logp)
        loss = loss + (-surrogate + 0.1 * k3).mean() / rows
    loss.backward()
    found, metrics = gradient(batch, cap=cap)
    assert_same(flat_gradient(model), found)
    assert (cap is None) == ("mismatch/capped" not in metrics)
    if cap:
        assert metrics["mismatch/capped"] == pytest.approx(sum(w >= cap for w in weights) / len(weights))
        square = sum(w * w for w in weights)
        assert metrics["mismatch/ess"] == pytest.approx(sum(weights) ** 2 / len(weights) / square, rel=1e-5)
        assert 0.1 < metrics["mismatch/capped"] < 0.9


def test_every_epoch_covers_every_row_once_and_keeps_groups_whole():
    batch = random_batch(prompts=5, samples=3)
    steps = gradient_step.minibatch_rows(batch, Update(epochs=2, minibatches=2), seed=3, step=4)
    assert len(steps) == 4
    for epoch in (steps[:2], steps[2:]):
        assert sorted(torch.cat(epoch).tolist()) == list(range(15))
        for rows in epoch:
            assert (batch.group[rows].bincount(minlength=5) % 3 == 0).all()
    assert not torch.equal(steps[0], steps[2])


@pytest.mark.parametrize(
    ("schedule", "number", "expected"),
    [("constant", 50, 1.0), ("constant", 1, 0.2), ("linear", 10, 1.0), ("linear", 60, 0.5), ("cosine", 60, 0.5)],
)
def test_learning_rate_warms_up_then_follows_its_schedule(schedule, number, expected):
    optimization = Optimizer(schedule=schedule, warmup_steps=10)
    assert gradient_step.rate_factor(optimization, number, 110) == pytest.approx(expected)


def test_on_policy_old_log_probs_are_the_current_ones():
    """One optimizer step per rollout: the ratio is 1, so the gradient is that of -A * log pi."""
    batch = random_batch()
    model = in_float64(random_model())
    policy = Policy(model)
    algorithm = resolve("grpo")
    bound = algorithm.bind({"denominator": "token"})
    objective = Objective(bound, KL(coefficient=0.0), LENGTH)
    learner = Learner(
        policy, torch.optim.SGD(policy.parameters(), 0.0), Backend(), objective, UPDATE, Optimizer(), 0, 1
    )
    signals = Signals(terminal_reward(batch).double())
    credit = bound.credit(batch, signals)
    gradient_step.accumulate(learner, batch, signals, credit, torch.arange(len(batch.group)))
    found = flat_gradient(model)
    model.zero_grad()
    logp = policy(batch)[0]
    (-(logp * credit.advantage)[batch.mask].sum() / batch.mask.sum()).backward()
    assert_same(flat_gradient(model), found)
    assert F.normalize.count(batch.mask, "token") == batch.mask.sum()
