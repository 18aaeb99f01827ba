"""The natural gradient step against explicit matrices: Fisher matrix, its inverse, and a bandit worked out by hand."""

from functools import partial

import pytest
import torch
from torch.testing import assert_close

from rlhf_pg.functional import logprobs, objectives
from rlhf_pg.functional.trust_region import conjugate_gradient, finite_difference, line_search, step_length

assert_exact = partial(assert_close, rtol=0, atol=1e-9)


def visited(toy):
    """The state before each sampled token of some rows [M], and the policy as a head on one-hot states [S, S]."""
    states = toy.state[[1, 4, 9, 12]][toy.mask[[1, 4, 9, 12]]]
    return states, torch.eye(len(toy.theta), dtype=torch.float64)[states]


def mean_kl(toy, theta):
    """Mean over the visited states of KL(old || theta), the old policy being the toy's."""
    _, hidden = visited(toy)
    return logprobs.distribution_kl(hidden, theta.T, hidden, toy.theta.detach().T, chunk=4).mean()


def explicit_fisher(toy):
    """Mean over states of sum_a p(a) grad log p(a) grad log p(a)^T [S V, S V], each gradient by hand."""
    states, _ = visited(toy)
    pi, size = toy.theta.detach().softmax(dim=1), toy.theta.numel()
    fisher = torch.zeros(size, size, dtype=torch.float64)
    for state in states.tolist():
        for action, p in enumerate(pi[state].tolist()):
            score = torch.zeros_like(pi)
            score[state] = -pi[state]
            score[state, action] += 1
            fisher += p * torch.outer(score.flatten(), score.flatten()) / len(states)
    return fisher


def kl_gradient(toy, offset):
    theta = (toy.theta.detach() + offset.view_as(toy.theta)).requires_grad_()
    return torch.autograd.grad(mean_kl(toy, theta), theta)[0].flatten()


def direction(toy, seed):
    return torch.randn(toy.theta.numel(), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_the_hessian_of_the_kl_is_the_explicit_fisher_matrix(toy):
    """By double backward, which a single chunk allows."""
    _, hidden = visited(toy)

    def kl(theta):
        return logprobs.distribution_kl(hidden, theta.T, hidden, toy.theta.detach().T).mean()

    size = toy.theta.numel()
    hessian = torch.autograd.functional.hessian(kl, toy.theta.detach())
    assert isinstance(hessian, torch.Tensor)
    assert_exact(hessian.reshape(size, size), explicit_fisher(toy))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_fisher_product_by_finite_difference_is_the_explicit_one(toy, seed):
    """Relative error 1e-4 at the default step of 1e-2, a hundredth of it at 1e-3, whatever the length of v."""
    v, fisher = direction(toy, seed), explicit_fisher(toy)
    exact = fisher @ v
    for step, bound in ((1e-2, 1e-4), (1e-3, 1e-6), (1e-5, 1e-9)):
        for scale in (1.0, 1e5):
            actual = finite_difference(partial(kl_gradient, toy), scale * v, step)
            assert (actual / scale - exact).norm() < bound * exact.norm()


def test_the_damped_direction_from_products_alone_solves_the_explicit_system(toy):
    fisher, g = explicit_fisher(toy), toy.true_gradient().flatten()

    def product(v):
        return finite_difference(partial(kl_gradient, toy), v, 1e-5) + 0.1 * v

    exact = torch.linalg.solve(fisher + 0.1 * torch.eye(len(g), dtype=torch.float64), g)
    assert_close(conjugate_gradient(product, g, 50, 1e-12), exact, rtol=1e-7, atol=1e-9)


REWARD = torch.tensor([1.0, 0.0, 0.5, -1.0], dtype=torch.float64)
LOGITS = torch.tensor([0.3, -0.2, 0.9, 0.1], dtype=torch.float64)


def bandit_kl(logits):
    """KL(old || new) of a softmax bandit with logits [4]: one state, hidden 1."""
    one = torch.ones(1, 1, dtype=torch.float64)
    return logprobs.distribution_kl(one, logits[:, None], one, LOGITS[:, None]).sum()


def bandit_direction():
    """g = grad of the expected reward at LOGITS, and x with F x = g from products alone."""
    logits = LOGITS.clone().requires_grad_()
    old = LOGITS.log_softmax(0)
    surrogate = -(old.exp() * objectives.ratio(logits.log_softmax(0)[None], old[None], REWARD[None])[0]).sum()
    g = torch.autograd.grad(surrogate, logits)[0]

    def kl_gradient(offset):
        moved = (LOGITS + offset).requires_grad_()
        return torch.autograd.grad(bandit_kl(moved), moved)[0]

    return g, conjugate_gradient(lambda v: finite_difference(kl_gradient, v, 1e-4), g, 10, 1e-12)


def test_the_natural_gradient_of_a_softmax_bandit_is_the_centred_reward():
    """F = diag(p) - p p^T and g = p (r - p.r), so F r = g; of all solutions that with sum 0, since g has sum 0."""
    g, x = bandit_direction()
    p = LOGITS.softmax(0)
    assert_exact(g, p * (REWARD - p @ REWARD))
    assert_close(x, REWARD - REWARD.mean(), rtol=0, atol=1e-6)
    fisher = torch.diag(p) - torch.outer(p, p)
    assert_close(x, torch.linalg.pinv(fisher) @ g, rtol=0, atol=1e-6)


@pytest.mark.parametrize("max_kl", [1e-6, 1e-3, 0.01, 0.3, 5.0])
def test_a_step_on_the_bandit_keeps_within_the_region_and_raises_the_reward(max_kl):
    """With one state the surrogate is the expected reward itself."""
    _, x = bandit_direction()
    p = LOGITS.softmax(0)
    fisher_x = p * (x - p @ x)
    full_step = step_length(x, fisher_x, max_kl) * x

    def measure(scale):
        moved = LOGITS + scale * full_step
        return bandit_kl(moved).item(), (moved.softmax(0) @ REWARD - p @ REWARD).item()

    scale, kl, improvement, _ = line_search(measure, max_kl)
    new = (LOGITS + scale * full_step).softmax(0)
    assert scale > 0
    assert (p * (p / new).log()).sum().item() == pytest.approx(kl, abs=1e-12)
    assert kl <= max_kl
    assert (new @ REWARD).item() > (p @ REWARD).item()
    assert improvement == pytest.approx((new @ REWARD - p @ REWARD).item(), abs=1e-12)
    if max_kl <= 0.01:  # the quadratic model holds there
        assert bandit_kl(LOGITS + full_step).item() == pytest.approx(max_kl, rel=0.1)


def test_a_surrogate_that_lies_about_its_direction_is_refused():
    """Uphill by the gradient, but measured to fall: no scale is taken."""
    _, x = bandit_direction()

    def measure(scale):
        moved = (LOGITS - scale * x).softmax(0)
        return 0.0, (moved @ REWARD - LOGITS.softmax(0) @ REWARD).item()

    assert line_search(measure, 0.01)[0] == 0.0
