"""The three estimators of KL: their values and the gradients they have as losses, by enumeration."""

import math
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from rlhf_pg.functional import kl

assert_exact = partial(assert_close, rtol=0, atol=1e-9)


@pytest.fixture
def softmaxes():
    """A policy's logits with gradient and a reference's log-probs, 7 actions each, float64."""
    random = torch.Generator().manual_seed(0)
    theta = torch.randn(7, dtype=torch.float64, generator=random).requires_grad_()
    return theta, torch.randn(7, dtype=torch.float64, generator=random).log_softmax(0)


def reverse_kl(logp, ref):
    return (logp.exp() * (logp - ref)).sum()  # KL(pi || ref)


def loss_gradient(estimator, theta, ref):
    """Expected gradient of the estimator as an on-policy loss: the sampling distribution is not differentiated."""
    logp = theta.log_softmax(0)
    return torch.autograd.grad((logp.exp().detach() * estimator(logp, ref)).sum(), theta)[0]


def test_by_hand():
    """pi = 0.5, ref = 0.25: d = log(1/2)."""
    logp, ref = torch.tensor([[math.log(0.5)]]), torch.tensor([[math.log(0.25)]])
    assert kl.k1(logp, ref).item() == pytest.approx(0.693147, abs=1e-6)
    assert kl.k2(logp, ref).item() == pytest.approx(0.240227, abs=1e-6)
    assert kl.k3(logp, ref).item() == pytest.approx(0.193147, abs=1e-6)


def test_k1_and_k3_have_the_kl_as_expected_value_and_k2_does_not(softmaxes):
    theta, ref = softmaxes
    logp = theta.detach().log_softmax(0)
    exact = reverse_kl(logp, ref)
    assert_exact((logp.exp() * kl.k1(logp, ref)).sum(), exact)
    assert_exact((logp.exp() * kl.k3(logp, ref)).sum(), exact)
    assert abs((logp.exp() * kl.k2(logp, ref)).sum() - exact) > 0.01


def test_summed_over_tokens_k1_and_k3_have_the_kl_of_sequences(toy):
    ref_theta = torch.randn(toy.theta.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    p, ref = toy.probability().detach(), toy.probability(ref_theta)
    exact = (p * (p.log() - ref.log())).sum()
    for estimator in (kl.k1, kl.k3):
        per_token = torch.where(toy.mask, estimator(toy.logp().detach(), toy.logp(ref_theta)), 0)
        assert_exact((p * per_token.sum(dim=1)).sum(), exact)


def test_k1_as_a_loss_has_no_expected_gradient(softmaxes):
    theta, ref = softmaxes
    assert_exact(loss_gradient(kl.k1, theta, ref), torch.zeros_like(theta))


def test_k2_as_a_loss_has_the_gradient_of_the_reverse_kl(softmaxes):
    theta, ref = softmaxes
    exact = torch.autograd.grad(reverse_kl(theta.log_softmax(0), ref), theta)[0]
    assert_exact(loss_gradient(kl.k2, theta, ref), exact)


def test_k3_as_a_loss_has_the_gradient_of_the_forward_kl_not_of_the_reverse(softmaxes):
    theta, ref = softmaxes
    estimate = loss_gradient(kl.k3, theta, ref)
    forward = (ref.exp() * (ref - theta.log_softmax(0))).sum()  # KL(ref || pi)
    assert_exact(estimate, torch.autograd.grad(forward, theta)[0])
    reverse = torch.autograd.grad(reverse_kl(theta.log_softmax(0), ref), theta)[0]
    assert torch.cosine_similarity(estimate, reverse, dim=0) < 0.99


@pytest.mark.parametrize("moved", [0.0, 0.7])
def test_k3_corrected_has_value_and_gradient_of_the_reverse_kl_on_and_off_policy(softmaxes, moved):
    """Sampled from pi_old = pi (moved 0) or from another policy: sum over actions of pi_old times the estimate."""
    theta, ref = softmaxes
    step = torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    old = (theta.detach() + moved * step).log_softmax(0)
    expected = (old.exp() * kl.k3_corrected(theta.log_softmax(0), ref, old)).sum()
    exact = reverse_kl(theta.log_softmax(0), ref)
    assert_exact(expected, exact)
    assert_exact(torch.autograd.grad(expected, theta)[0], torch.autograd.grad(exact, theta)[0])


def test_plain_k3_is_off_by_this_much_on_and_off_policy(softmaxes):
    """Cosine with the gradient of KL(pi || ref); corrected it is 1."""
    theta, ref = softmaxes
    step = torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    old = (theta.detach() + 0.7 * step).softmax(0)
    reverse = torch.autograd.grad(reverse_kl(theta.log_softmax(0), ref), theta)[0]
    off_policy = torch.autograd.grad((old * kl.k3(theta.log_softmax(0), ref)).sum(), theta)[0]
    actual = [torch.cosine_similarity(g, reverse, dim=0).item() for g in (loss_gradient(kl.k3, theta, ref), off_policy)]
    assert actual == pytest.approx([0.964, 0.949], abs=1e-3)


def test_k3_corrected_over_sequences_has_the_gradient_of_each_visited_states_kl(toy):
    """Not of the sequences' KL: that also holds how a token changes the states to come, which is left out here."""
    ref_theta = toy.other_theta(5)
    ref = toy.logp(ref_theta)
    p = toy.probability().detach()
    loss = torch.where(toy.mask, kl.k3_corrected(toy.logp(), ref, toy.logp().detach()), 0).sum(dim=1)
    actual = toy.gradient((p * loss).sum())
    log_pi, log_ref = toy.theta.log_softmax(1), ref_theta.log_softmax(1)
    per_state = (log_pi.exp() * (log_pi - log_ref)).sum(dim=1)  # [S]
    visits = torch.where(toy.mask, per_state[toy.state], 0).sum(dim=1)
    assert_exact(actual, toy.gradient((p * visits).sum()))
    sequence_gradient = toy.gradient((toy.probability() * torch.where(toy.mask, toy.logp() - ref, 0).sum(dim=1)).sum())
    assert torch.cosine_similarity(actual.flatten(), sequence_gradient.flatten(), dim=0).item() == pytest.approx(
        0.983, abs=1e-3
    )


def test_no_gradient_flows_into_the_old_policy():
    logp, old = torch.zeros(1, 2).requires_grad_(), torch.ones(1, 2).requires_grad_()
    kl.k3_corrected(logp, torch.ones(1, 2), old).sum().backward()
    assert old.grad is None
    assert logp.grad is not None


@pytest.mark.parametrize(
    ("measured", "expected"),
    [(0.11, 0.505), (0.09, 0.495), (0.1, 0.5), (0.12, 0.51), (5.0, 0.51), (0.0, 0.49), (-1.0, 0.49), (math.inf, 0.51)],
)
def test_adapt_by_hand(measured, expected):
    """Target 0.1: 10 % too high, 100 of 1000 samples, is 1 % more; at most 20 % either way counts."""
    assert kl.adapt(0.5, measured, target=0.1, samples=100, horizon=1000) == pytest.approx(expected, abs=1e-12)


def test_adapt_at_the_ends_of_its_range():
    """No samples change nothing; 4 horizons of samples at -20 % are a factor of 0.2; a horizon of 1 is one."""
    assert kl.adapt(0.5, 9.0, 0.1, samples=0, horizon=1000) == 0.5
    assert kl.adapt(0.5, 0.0, 0.1, samples=4000, horizon=1000) == pytest.approx(0.1)
    assert kl.adapt(0.5, 0.11, 0.1, samples=1, horizon=1) == pytest.approx(0.55)


def test_adapt_refuses_what_it_cannot_steer_by():
    for measured, target, horizon in ((math.nan, 0.1, 1000), (0.1, 0.0, 1000), (0.1, 0.1, 0)):
        with pytest.raises(ValueError, match="need a number and two positive"):
            kl.adapt(0.5, measured, target, 100, horizon)
    with pytest.raises(ValueError, match="longer horizon"):
        kl.adapt(0.5, 0.1, 0.1, samples=5000, horizon=1000)


def test_k3_is_accurate_and_not_negative_where_the_policies_nearly_agree():
    """d = 1e-4: the value is d^2 / 2 = 5.0002e-9, far below the float32 spacing of exp(d) around 1."""
    logp, ref = torch.full((1, 2), -1.0), torch.tensor([[-1.0 + 2**-13, -1.0 - 2**-13]])
    assert_close(kl.k3(logp, ref), torch.full((1, 2), 2.0**-27), rtol=1e-3, atol=0)
    assert (kl.k3(torch.randn(1, 1000) * 1e-3, torch.zeros(1, 1000)) >= 0).all()


@pytest.mark.parametrize("estimator", [kl.k1, kl.k2, kl.k3])
def test_shapes_must_match_and_dtype_is_kept(estimator):
    with pytest.raises(ValueError, match=r"logp \[2, 3\], logp_ref \[2, 1\]"):
        estimator(torch.zeros(2, 3), torch.zeros(2, 1))
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        x = torch.zeros(1, 2, dtype=dtype)
        assert estimator(x, x).dtype == dtype
        assert kl.k3_corrected(x, x, x).dtype == dtype
    with pytest.raises(ValueError, match=r"logp_ref \[2, 3\], logp_old \[2, 1\]"):
        kl.k3_corrected(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 1))
