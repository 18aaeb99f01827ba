import pytest
import torch
from torch.testing import assert_close

from rlhf_pg.functional import normalize, objectives


def row(*numbers):
    return torch.tensor([numbers], dtype=torch.float64)


def test_score_function_is_minus_logp_times_advantage():
    logp = row(-1.0, -2.0).requires_grad_()
    loss = objectives.score_function(logp, row(3.0, -0.5))
    assert_close(loss, row(3.0, -1.0))
    loss.sum().backward()
    assert_close(logp.grad, row(-3.0, 0.5))


def test_ratio_is_minus_rho_times_advantage_and_its_gradient():
    old = row(-1.0, -1.0)
    logp = (old + row(2.0, 0.5).log()).requires_grad_()
    loss = objectives.ratio(logp, old, row(3.0, -1.0))
    assert_close(loss, row(-6.0, 0.5))
    loss.sum().backward()
    assert_close(logp.grad, row(-6.0, 0.5))  # d(-rho A)/dlogp = -rho A


CASES = [  # rho, advantage, loss, gradient for logp, clipped; clip_low = 0.2, clip_high = 0.3
    (1.5, 2.0, -2.6, 0.0, 1.0),  # too far up on a good token: clipped at 1.3
    (1.5, -2.0, 3.0, 3.0, 0.0),  # too far up on a bad token: pushed back
    (0.5, 2.0, -1.0, -1.0, 0.0),  # too far down on a good token: pushed back
    (0.5, -2.0, 1.6, 0.0, 1.0),  # too far down on a bad token: clipped at 0.8
    (1.1, 2.0, -2.2, -2.2, 0.0),  # inside
    (0.9, -2.0, 1.8, 1.8, 0.0),
    (1.25, 2.0, -2.5, -2.5, 0.0),  # inside the upper bound only: 1.25 > 1 + clip_low
    (0.75, -2.0, 1.6, 0.0, 1.0),  # outside the lower bound only: 0.75 > 1 - clip_high
    (1.0, 2.0, -2.0, -2.0, 0.0),
]


@pytest.mark.parametrize(("rho", "advantage", "loss", "gradient", "clipped"), CASES)
def test_clip_in_all_quadrants_by_hand(rho, advantage, loss, gradient, clipped):
    old = row(-1.5)
    logp = (old + row(rho).log()).requires_grad_()
    found = objectives.clipped_ratio(logp, old, row(advantage), clip_low=0.2, clip_high=0.3)
    assert_close(found, row(loss))
    found.sum().backward()
    assert_close(logp.grad, row(gradient))
    assert_close(objectives.is_clipped(logp, old, row(advantage), 0.2, 0.3), row(clipped))


def test_is_clipped_marks_exactly_the_tokens_without_gradient():
    random = torch.Generator().manual_seed(0)
    logp, old, advantage = torch.randn(3, 40, 25, generator=random).unbind()
    logp.requires_grad_()
    objectives.clipped_ratio(logp, old, advantage, 0.2, 0.28).sum().backward()
    assert logp.grad is not None
    assert torch.equal(objectives.is_clipped(logp, old, advantage, 0.2, 0.28), (logp.grad == 0).float())


def test_no_gradient_flows_into_advantage_or_old_policy():
    logp, old, advantage = (torch.randn(2, 3).requires_grad_() for _ in range(3))
    objectives.clipped_ratio(logp, old, advantage).sum().backward()
    objectives.ratio(logp, old, advantage).sum().backward()
    objectives.score_function(logp, advantage).sum().backward()
    assert old.grad is None
    assert advantage.grad is None


def test_garbage_in_padding_reaches_neither_loss_nor_gradient():
    """As a policy builds it: log-probs masked with torch.where, everything else NaN or infinite in the padding."""
    mask = torch.tensor([[True, False, False]])
    raw = row(-1.0, float("nan"), -1.0).requires_grad_()
    old, advantage = row(-1.0, float("nan"), float("-inf")), row(2.0, float("nan"), 1.0)
    loss = objectives.clipped_ratio(torch.where(mask, raw, 0), old, advantage)
    total = normalize.total(loss, mask)
    total.backward()
    assert total.item() == -2.0
    assert_close(raw.grad, row(-2.0, 0.0, 0.0))


def test_errors_name_the_shapes_and_the_bounds():
    x, y = torch.zeros(2, 3), torch.zeros(2)
    for call in (
        lambda: objectives.score_function(x, y),
        lambda: objectives.ratio(x, x, y),
        lambda: objectives.clipped_ratio(x, y, x),
        lambda: objectives.is_clipped(x, x, y, 0.2, 0.2),
    ):
        with pytest.raises(ValueError, match=r"\[2, 3\].*\[2\]"):
            call()
    with pytest.raises(ValueError, match="clip_low"):
        objectives.clipped_ratio(x, x, x, clip_low=1.5)
    with pytest.raises(ValueError, match="clip_high"):
        objectives.is_clipped(x, x, x, 0.2, -0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_dtype_is_kept(dtype):
    x = torch.zeros(1, 2, dtype=dtype)
    assert objectives.score_function(x, x).dtype == dtype
    assert objectives.ratio(x, x, x).dtype == dtype
    assert objectives.clipped_ratio(x, x, x).dtype == dtype
    assert objectives.is_clipped(x, x, x, 0.2, 0.2).dtype == dtype
