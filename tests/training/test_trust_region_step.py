"""TRPO's step on real models: the exact natural gradient step, within its bound, or none at all."""

from dataclasses import replace

import pytest
import torch

from rlhf_pg.algorithms.base import resolve
from rlhf_pg.config import KL, Optimizer, Update
from rlhf_pg.distributed.backend import Backend
from rlhf_pg.models.policy import Policy
from rlhf_pg.training import trust_region_step
from rlhf_pg.training.learner import Learner, Objective
from rlhf_pg.types import Credit, Signals
from tests.random_models import random_batch, random_model

ALL_STATES = {"fisher_fraction": 1.0, "denominator": "token"}


def double(batch):
    return replace(batch, reward=batch.reward.double(), logp_rollout=batch.logp_rollout.double())


def norm_weights(model):
    """Only the weights of the norms are trained: few enough that the Fisher matrix can be written out."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("norm" in name)
    return model


def make(model, *, tokens=10_000, share=True, kl=None, temperature=0.9, **options):
    algorithm = resolve("trpo")
    policy = Policy(model, temperature, share)
    return Learner(
        policy=policy,
        optimizer=torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0),
        backend=Backend(),
        objective=Objective(algorithm.bind(ALL_STATES | options), kl or KL(coefficient=0.0), max_length=6),
        update=Update(tokens_per_microbatch=tokens, share_prompts=share),
        optimization=Optimizer(),
        seed=0,
        total_updates=1,
    )


def step(learner, batch, advantage=None, poll=lambda: None, logp_ref=None):
    if advantage is None:
        advantage = torch.randn(batch.mask.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    signals = Signals(token_reward=torch.zeros_like(batch.logp_rollout), logp_ref=logp_ref)
    found = list(trust_region_step.natural_gradient_step(learner, batch, signals, Credit(advantage), 0, 0, poll))
    assert len(found) == 1
    return found[0], advantage


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])


def all_logits(model, batch, temperature=0.9):
    """Logits [M, V] of every sampled state, row by row from the model itself."""
    out = []
    for b in range(len(batch.group)):
        n = int(batch.group[b])
        prompt = batch.prompt_tokens[n, : int(batch.prompt_lengths[n])]
        row = torch.cat([prompt, batch.tokens[b]])[None]
        logits = model(row).logits[0, len(prompt) - 1 : -1] / temperature
        out.append(logits[batch.mask[b]])
    return torch.cat(out)


def gradient_of(scalar, model):
    wanted = [p for p in model.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(scalar, wanted, retain_graph=True)])


def explicit_fisher(model, batch):
    """Mean over sampled states of sum_a p_a grad log p_a grad log p_a^T, one backward pass per logit."""
    logits = all_logits(model, batch)
    states, vocabulary = logits.shape
    log_p = logits.log_softmax(dim=-1)
    total = 0
    for m in range(states):
        scores = torch.stack([gradient_of(log_p[m, a], model) for a in range(vocabulary)])
        total = total + scores.T @ (log_p[m].exp()[:, None] * scores).detach()
    return total / states


def surrogate_gradient(model, batch, advantage):
    log_p = all_logits(model, batch).log_softmax(dim=-1)
    taken = log_p.gather(1, batch.tokens[batch.mask][:, None]).squeeze(1)
    return gradient_of((taken * advantage[batch.mask]).mean(), model)


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_the_step_is_the_exact_natural_gradient_step(kind):
    batch, damping, delta = double(random_batch(prompts=2, samples=3, holes=True)), 1e-3, 1e-4
    model = norm_weights(random_model(kind, vocabulary=23)).double()
    fisher, before = explicit_fisher(model, batch), flat(model)
    metrics, advantage = step(make(model, max_kl=delta, damping=damping, cg_iterations=200), batch)
    moved = flat(model) - before
    with torch.no_grad():
        for p, piece in zip(
            [p for p in model.parameters() if p.requires_grad],
            before.split([p.numel() for p in model.parameters() if p.requires_grad]),
            strict=True,
        ):
            p.copy_(piece.view_as(p))
    g = surrogate_gradient(model, batch, advantage)
    damped = fisher + damping * torch.eye(len(g), dtype=torch.float64)
    x = torch.linalg.solve(damped, g)
    expected = (2 * delta / (x @ damped @ x)).sqrt() * x
    assert metrics["trust/accepted"] == 1 and metrics["trust/line_search_steps"] == 1
    assert (moved - expected).norm() / expected.norm() < 1e-3
    assert metrics["trust/cg_residual"] < 1e-3


@pytest.mark.parametrize("share", [True, False])
def test_the_kl_it_reports_is_that_of_the_whole_distributions_and_within_the_bound(share):
    batch, model = double(random_batch(holes=True)), random_model().double()
    old = all_logits(model, batch).detach().log_softmax(dim=-1)
    metrics, advantage = step(make(model, share=share, max_kl=0.02), batch)
    new = all_logits(model, batch).detach().log_softmax(dim=-1)
    kl = (old.exp() * (old - new)).sum(dim=-1).mean()
    assert metrics["trust/accepted"] == 1
    assert metrics["trust/kl"] == pytest.approx(float(kl), rel=1e-3)
    assert 0.001 < float(kl) <= 0.02
    tokens = batch.tokens[batch.mask][:, None]
    ratio = (new.gather(1, tokens) - old.gather(1, tokens)).exp().squeeze(1)
    rise = ((ratio - 1) * advantage[batch.mask]).mean()
    assert metrics["trust/improvement"] == pytest.approx(float(rise), rel=1e-3)
    assert rise > 0


@pytest.mark.parametrize("tokens", [1, 14, 40])
def test_micro_batches_do_not_change_the_step(tokens):
    weights = []
    for budget in (10_000, tokens):
        model = norm_weights(random_model()).double()
        metrics, _ = step(make(model, tokens=budget), double(random_batch()))
        assert metrics["trust/accepted"] == 1
        weights.append(flat(model))
    start = flat(norm_weights(random_model()).double())
    assert (weights[0] - weights[1]).norm() / (weights[0] - start).norm() < 1e-3


def test_a_step_that_breaks_its_bound_is_shortened_and_one_that_cannot_be_is_refused(monkeypatch):
    batch = double(random_batch())
    lengths = trust_region_step.F.trust_region.step_length
    monkeypatch.setattr(trust_region_step.F.trust_region, "step_length", lambda *a: 8 * lengths(*a))
    model = random_model().double()
    metrics, _ = step(make(model), batch)
    assert metrics["trust/accepted"] == 1 and metrics["trust/line_search_steps"] > 2
    assert metrics["trust/kl"] <= 0.01
    model = random_model().double()
    before = flat(model)
    metrics, _ = step(make(model, line_search_steps=1), batch)
    assert metrics["trust/accepted"] == 0 and metrics["trust/kl"] == 0 and metrics["trust/improvement"] == 0
    assert torch.equal(flat(model), before)


def test_advantages_of_zero_take_no_step():
    batch, model = double(random_batch()), random_model().double()
    before = flat(model)
    metrics, _ = step(make(model), batch, advantage=torch.zeros_like(batch.logp_rollout))
    assert metrics["trust/accepted"] == 0 and metrics["grad_norm"] == 0
    assert torch.equal(flat(model), before)


@pytest.mark.parametrize("fail_at", [1, 2, 3, 5, 8, 14, 22])
def test_interrupted_at_any_pass_the_weights_are_bitwise_as_before(fail_at):
    batch, model = double(random_batch()), random_model().double()
    before, seen = flat(model), []

    def poll():
        seen.append(1)
        if len(seen) == fail_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        step(make(model), batch, poll=poll)
    assert torch.equal(flat(model), before)


def test_on_an_adapter_the_base_stays_and_the_adapter_moves():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(random_model(), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    base = {n: p.detach().clone() for n, p in model.named_parameters() if "lora_" not in n}
    metrics, _ = step(make(model), random_batch())
    assert metrics["trust/accepted"] == 1 and 0 < metrics["trust/kl"] <= 0.01
    assert all(torch.equal(p, base[n]) for n, p in model.named_parameters() if n in base)
    assert any(bool(p.any()) for n, p in model.named_parameters() if "lora_B" in n)


def test_products_on_a_share_of_the_rows_cost_that_share():
    batch = double(random_batch(prompts=4, samples=5))
    metrics, _ = step(make(random_model().double(), fisher_fraction=0.1, cg_iterations=10), batch)
    products = 2 * 11 * 0.1  # ten of conjugate gradients and one for the step length, two gradients each
    assert metrics["trust/backwards"] == pytest.approx(1 + products)
    assert metrics["trust/forwards"] == pytest.approx(2 + products + metrics["trust/line_search_steps"])


def test_a_kl_to_the_reference_in_the_loss_is_part_of_what_must_rise():
    batch = double(random_batch())
    model = random_model().double()
    reference = torch.where(batch.mask, Policy(random_model(seed=3).double(), 0.9)(batch)[0].detach(), 0)
    nothing = torch.zeros_like(batch.logp_rollout)
    metrics, _ = step(make(model, kl=KL(coefficient=1.0)), batch, advantage=nothing, logp_ref=reference)
    assert metrics["trust/accepted"] == 1 and metrics["trust/improvement"] > 0


def test_a_step_that_is_done_is_not_taken_again():
    batch, model = double(random_batch()), random_model().double()
    done = (make(model), batch, Signals(batch.logp_rollout), Credit(batch.logp_rollout), 0, 1)
    assert list(trust_region_step.natural_gradient_step(*done)) == []


def test_where_the_curvature_is_not_positive_no_step_is_taken_and_the_weights_stay(monkeypatch):
    """A product of the wrong sign, as rounding or too little damping may give, met after some products were taken."""
    right = trust_region_step.F.trust_region.finite_difference
    calls = []

    def turns_negative(gradient, v):
        calls.append(v)
        return right(gradient, v) * (1 if len(calls) < 3 else -1)

    monkeypatch.setattr(trust_region_step.F.trust_region, "finite_difference", turns_negative)
    batch, model = double(random_batch()), random_model().double()
    before = flat(model)
    metrics, _ = step(make(model, damping=0.0), batch)
    assert len(calls) >= 3
    assert metrics["trust/curvature_failed"] == 1 and metrics["trust/accepted"] == 0
    assert torch.equal(flat(model), before)
