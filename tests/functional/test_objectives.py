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
    actual = objectives.clipped_ratio(logp, old, row(advantage), clip_low=0.2, clip_high=0.3)
    assert_close(actual, row(loss))
    actual.sum().backward()
    assert_close(logp.grad, row(gradient))
    assert_close(objectives.is_clipped(logp, old, row(advantage), 0.2, 0.3), row(clipped))


def test_the_default_bounds_are_those_of_ppo():
    old, advantage = row(-1.0, -1.0), row(1.0, -1.0)
    loss = objectives.clipped_ratio(old + row(1.3, 0.7).log(), old, advantage)
    assert_close(loss, row(-1.2, 0.8))


def test_a_token_without_advantage_or_exactly_at_a_bound_is_not_counted_as_clipped():
    old = row(-1.0, -1.0)
    moved = old + row(1.5, 0.5).log()
    assert objectives.is_clipped(moved, old, row(0.0, 0.0), 0.2, 0.2).tolist() == [[0, 0]]
    assert objectives.is_clipped(old, old, row(1.0, -1.0), 0.0, 0.0).tolist() == [[0, 0]]
    assert objectives.is_outside(old, old, 0.0, 0.0).tolist() == [[0, 0]]


def test_is_clipped_marks_exactly_the_tokens_without_gradient():
    random = torch.Generator().manual_seed(0)
    logp, old, advantage = torch.randn(3, 40, 25, generator=random).unbind()
    logp.requires_grad_()
    objectives.clipped_ratio(logp, old, advantage, 0.2, 0.28).sum().backward()
    assert logp.grad is not None
    assert torch.equal(objectives.is_clipped(logp, old, advantage, 0.2, 0.28), (logp.grad == 0).float())


def test_clipped_weight_bounds_the_weight_and_keeps_the_gradient_of_every_token():
    """Ratios 2, 0.5, 1.1 and 0.1 with bounds 0.8 and 1.3: weights 1.3, 0.8, 1.1, 0.8; loss -w A log pi."""
    old, advantage = row(-1.0, -1.0, -1.0, -1.0), row(3.0, -1.0, 2.0, 5.0)
    logp = (old + row(2.0, 0.5, 1.1, 0.1).log()).requires_grad_()
    loss = objectives.clipped_weight(logp, old, advantage, clip_low=0.2, clip_high=0.3)
    slope = row(-3.9, 0.8, -2.2, -4.0)
    assert_close(loss, slope * logp)
    loss.sum().backward()
    assert_close(logp.grad, slope)


def test_clipped_weight_has_no_lower_bound_by_default():
    old = row(-1.0, -1.0)
    logp = (old + row(1e-4, 1.5).log()).requires_grad_()
    objectives.clipped_weight(logp, old, row(1.0, 1.0)).sum().backward()
    assert_close(logp.grad, row(-1e-4, -1.2))


def test_the_two_sides_of_a_clip_are_told_apart():
    ratios, advantages = torch.tensor([[0.5, 0.5, 1.0, 1.5, 1.5]]), torch.tensor([[-1.0, 1.0, 1.0, 1.0, -1.0]])
    old = torch.full((1, 5), -1.0)
    logp = old + ratios.log()
    below, above = objectives.clipped_sides(logp, old, advantages, 0.2, 0.2)
    assert (below.tolist(), above.tolist()) == ([[1, 0, 0, 0, 0]], [[0, 0, 0, 1, 0]])
    below, above = objectives.outside_sides(logp, old, 0.2, 0.2)
    assert (below.tolist(), above.tolist()) == ([[1, 1, 0, 0, 0]], [[0, 0, 0, 1, 1]])


def test_is_outside_looks_at_the_ratio_alone():
    old = row(-1.0, -1.0, -1.0, -1.0)
    logp = old + row(1.35, 1.25, 0.85, 0.75).log()
    assert objectives.is_outside(logp, old, 0.2, 0.3).tolist() == [[1, 0, 0, 1]]
    assert objectives.is_outside(logp, old, 0.1, 0.2).tolist() == [[1, 1, 1, 1]]


def test_sequence_level_by_hand():
    """Rows with ratios (4, -, 1) and (1/8): geometric means 2 and 1/8. Gradient of the ratio: s on each token."""
    mask = torch.tensor([[True, False, True], [True, False, False]])
    nan = float("nan")
    old = torch.tensor([[-1.0, nan, -2.0], [-3.0, nan, nan]], dtype=torch.float64)
    ratio = torch.tensor([[4.0, nan, 1.0], [1 / 8, nan, nan]], dtype=torch.float64)
    logp = (old + ratio.log()).requires_grad_()
    actual = objectives.sequence_level(logp, old, mask)
    assert actual[~mask].tolist() == [0, 0, 0]
    s = (actual - old.nan_to_num()).exp()
    expected = torch.tensor([[2.0, 1, 2], [1 / 8, 1, 1]], dtype=torch.float64)
    assert_close(s, expected)
    torch.where(mask, s, 0).sum().backward()
    assert_close(logp.grad, torch.tensor([[2.0, 0, 2], [1 / 8, 0, 0]], dtype=torch.float64))


def test_sequence_level_of_a_row_without_a_sampled_token_is_zero():
    mask = torch.tensor([[False, False]])
    assert objectives.sequence_level(row(-1.0, -2.0), row(-3.0, -4.0), mask).tolist() == [[0, 0]]


def test_value_loss_is_half_the_squared_error():
    value, returns = row(1.0, -2.0).requires_grad_(), row(4.0, -2.5).requires_grad_()
    loss = objectives.value_loss(value, returns, value.detach() + 9)
    assert_close(loss, row(4.5, 0.125))
    loss.sum().backward()
    assert_close(value.grad, row(-3.0, 0.5))
    assert returns.grad is None


VALUE_CASES = [  # value, returns, loss, gradient; old value 1, clip 0.5
    (1.2, 3.0, 1.62, -1.8),  # inside: as without a clip
    (0.7, 3.0, 2.645, -2.3),
    (2.0, 3.0, 1.125, 0.0),  # moved too far up towards the target: that of 1.5, no gradient
    (0.0, -1.0, 1.125, 0.0),  # moved too far down towards the target: that of 0.5
    (2.0, 0.0, 2.0, 2.0),  # too far up, away from the target: pulled back
    (0.0, 3.0, 4.5, -3.0),  # too far down, away from the target: pulled back
]


@pytest.mark.parametrize(("value", "returns", "loss", "gradient"), VALUE_CASES)
def test_value_clip_by_hand(value, returns, loss, gradient):
    current, old = row(value).requires_grad_(), row(1.0).requires_grad_()
    actual = objectives.value_loss(current, row(returns), old, clip=0.5)
    assert_close(actual, row(loss))
    actual.sum().backward()
    assert_close(current.grad, row(gradient))
    assert old.grad is None


def test_value_loss_refuses_a_clip_without_old_values_or_that_is_not_positive():
    x = row(1.0)
    with pytest.raises(ValueError, match=r"clip=0\.2 needs value_old"):
        objectives.value_loss(x, x, clip=0.2)
    with pytest.raises(ValueError, match="clip=0: must be positive"):
        objectives.value_loss(x, x, x, clip=0)


def test_no_gradient_flows_into_advantage_or_old_policy():
    logp, old, advantage = (torch.randn(2, 3).requires_grad_() for _ in range(3))
    objectives.clipped_ratio(logp, old, advantage).sum().backward()
    objectives.ratio(logp, old, advantage).sum().backward()
    objectives.score_function(logp, advantage).sum().backward()
    objectives.clipped_weight(logp, old, advantage).sum().backward()
    objectives.sequence_level(logp, old, torch.ones(2, 3, dtype=torch.bool)).sum().backward()
    assert not objectives.is_outside(logp, old, 0.2, 0.2).requires_grad
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
        lambda: objectives.is_outside(x, y, 0.2, 0.2),
        lambda: objectives.clipped_weight(x, x, y),
        lambda: objectives.sequence_level(x, y, x.bool()),
        lambda: objectives.sequence_level(x, x, y.bool()),
        lambda: objectives.value_loss(x, y),
        lambda: objectives.value_loss(x, x, y, 0.2),
    ):
        with pytest.raises(ValueError, match=r"\[2, 3\].*\[2\]"):
            call()
    with pytest.raises(ValueError, match="clip_low"):
        objectives.clipped_ratio(x, x, x, clip_low=1.5)
    with pytest.raises(ValueError, match="clip_high"):
        objectives.is_clipped(x, x, x, 0.2, -0.1)
    with pytest.raises(ValueError, match="clip_high"):
        objectives.clipped_ratio(x, x, x, clip_high=-0.1)
    with pytest.raises(ValueError, match="clip_low"):
        objectives.clipped_weight(x, x, x, clip_low=1.5)
    with pytest.raises(ValueError, match="clip_high"):
        objectives.clipped_weight(x, x, x, clip_high=-0.1)
    with pytest.raises(ValueError, match="clip_high"):
        objectives.is_outside(x, x, 0.2, -0.1)
    with pytest.raises(ValueError, match=r"torch\.bool"):
        objectives.sequence_level(x, x, x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_dtype_is_kept(dtype):
    x = torch.zeros(1, 2, dtype=dtype)
    assert objectives.score_function(x, x).dtype == dtype
    assert objectives.ratio(x, x, x).dtype == dtype
    assert objectives.clipped_ratio(x, x, x).dtype == dtype
    assert objectives.is_clipped(x, x, x, 0.2, 0.2).dtype == dtype
    assert objectives.is_outside(x, x, 0.2, 0.2).dtype == dtype
    assert objectives.clipped_weight(x, x, x).dtype == dtype
    assert objectives.sequence_level(x, x, x.bool()).dtype == dtype
    assert objectives.value_loss(x, x, x, 0.2).dtype == dtype
