import math

import pytest
import torch
from torch.testing import assert_close

from rlhf_pg.functional import credit

NAN = math.nan
REWARD = torch.tensor([[1.0, NAN, 2.0, 4.0, NAN], [NAN, 8.0, NAN, NAN, NAN]], dtype=torch.float64)
VALUE = torch.tensor([[0.5, NAN, 1.0, 3.0, NAN], [NAN, 2.0, NAN, NAN, NAN]], dtype=torch.float64)
MASK = ~REWARD.isnan()  # a hole in row 0, a late start in row 1, padding in both; NaN wherever nothing was sampled


def test_trajectory_return_by_hand():
    expected = torch.tensor([[7.0, 0, 7, 7, 0], [0, 8, 0, 0, 0]], dtype=torch.float64)
    assert_close(credit.trajectory_return(REWARD, MASK), expected)


def test_reward_to_go_by_hand_with_holes():
    """gamma 1/2: 4; 2 + 4/2 = 4; 1 + 4/2 = 3, the hole taking no time."""
    expected = torch.tensor([[3.0, 0, 4, 4, 0], [0, 8, 0, 0, 0]], dtype=torch.float64)
    assert_close(credit.reward_to_go(REWARD, MASK, gamma=0.5), expected)


def test_reward_to_go_without_discount_is_the_sum_from_here_on():
    expected = torch.tensor([[7.0, 0, 6, 4, 0], [0, 8, 0, 0, 0]], dtype=torch.float64)
    assert_close(credit.reward_to_go(REWARD, MASK), expected)


def test_gae_by_hand_with_holes():
    """gamma 1/2, lambda 1/2, sampled tokens of row 0: delta = (1 + 1/2 - 1/2, 2 + 3/2 - 1, 4 - 3) = (1, 2.5, 1)."""
    advantage, returns = credit.gae(REWARD, VALUE, MASK, gamma=0.5, lam=0.5)
    by_hand = torch.tensor([[1 + 2.75 / 4, 0, 2.5 + 1 / 4, 1, 0], [0, 6, 0, 0, 0]], dtype=torch.float64)
    assert_close(advantage, by_hand)
    value = torch.tensor([[0.5, 0, 1, 3, 0], [0, 2, 0, 0, 0]], dtype=torch.float64)
    assert_close(returns, by_hand + value)


def gae_slowly(reward, value, mask, gamma, lam):
    """Equation 16 term by term: A_t = sum_l (gamma lam)^l delta_{t+l} over each row's sampled tokens."""
    out = torch.zeros_like(reward)
    for b in range(len(reward)):
        at = mask[b].nonzero().flatten().tolist()
        v = [value[b, t].item() for t in at] + [0.0]
        delta = [reward[b, t].item() + gamma * v[i + 1] - v[i] for i, t in enumerate(at)]
        for i, t in enumerate(at):
            out[b, t] = sum((gamma * lam) ** (j - i) * delta[j] for j in range(i, len(at)))
    return out


@pytest.fixture
def holed():
    random = torch.Generator().manual_seed(0)
    mask = torch.rand(6, 9, generator=random) < 0.6
    mask[0], mask[1] = True, False
    reward, value = torch.randn(2, 6, 9, dtype=torch.float64, generator=random).unbind()
    return torch.where(mask, reward, NAN), torch.where(mask, value, NAN), mask


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.9, 0.8), (1.0, 0.95), (0.5, 0.0), (0.0, 0.7)])
def test_gae_equals_the_slow_sum_with_holes(holed, gamma, lam):
    reward, value, mask = holed
    slowly = gae_slowly(reward, value, mask, gamma, lam)
    assert_close(credit.gae(reward, value, mask, gamma, lam)[0], slowly, rtol=0, atol=1e-12)


def test_gae_with_gamma_and_lambda_one_is_return_minus_value(holed):
    reward, value, mask = holed
    advantage, returns = credit.gae(reward, value, mask, 1.0, 1.0)
    to_go = credit.reward_to_go(reward, mask)
    assert_close(advantage, torch.where(mask, to_go - value, 0), rtol=0, atol=1e-12)
    assert_close(returns, to_go, rtol=0, atol=1e-12)


def test_gae_with_lambda_zero_is_the_one_step_difference(holed):
    reward, value, mask = holed
    advantage, _ = credit.gae(reward, value, mask, 0.9, 0.0)
    for b in range(len(mask)):
        at = mask[b].nonzero().flatten().tolist()
        for t, after in zip(at, [*at[1:], None], strict=False):
            later = 0.0 if after is None else value[b, after].item()
            assert advantage[b, t].item() == pytest.approx(reward[b, t].item() + 0.9 * later - value[b, t].item())


def test_no_gradient_flows_through_the_value():
    value = torch.randn(2, 3).requires_grad_()
    advantage, returns = credit.gae(torch.randn(2, 3), value, torch.ones(2, 3, dtype=torch.bool), 1.0, 0.9)
    assert not advantage.requires_grad
    assert not returns.requires_grad


def test_group_advantage_by_hand():
    """Group 7: rewards 1, 0, 0, 0: mean 1/4, sample variance 1/4. Group -3: 2, 4: mean 3, sample std sqrt(2)."""
    reward = torch.tensor([1.0, 2, 0, 0, 4, 0], dtype=torch.float64)
    group = torch.tensor([7, -3, 7, 7, -3, 7])
    root = 2**0.5
    scaled = [0.75 / 0.51, -1 / (root + 0.01), -0.25 / 0.51, -0.25 / 0.51, 1 / (root + 0.01), -0.25 / 0.51]
    assert_close(credit.group_advantage(reward, group, eps=0.01), torch.tensor(scaled, dtype=torch.float64))
    centred = torch.tensor([0.75, -1, -0.25, -0.25, 1, -0.25], dtype=torch.float64)
    assert_close(credit.group_advantage(reward, group, scale=False), centred)


def test_default_eps_is_the_papers():
    """Rewards 0 and 1: +-0.5 / (sqrt(0.5) + 1e-4)."""
    actual = credit.group_advantage(torch.tensor([0.0, 1.0], dtype=torch.float64), torch.tensor([0, 0]))
    assert actual[1].item() == pytest.approx(0.5 / (0.5**0.5 + 1e-4), abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reward", [0.1, 1 / 3, 1e-30, 1e30, -0.7])
@pytest.mark.parametrize("size", [1, 3, 7, 8, 10])
def test_equal_rewards_give_exactly_zero(dtype, reward, size):
    """Even where the rounded mean of the group is not the reward: the noise would be divided by eps."""
    rewards = torch.cat([torch.full((size,), reward, dtype=dtype), torch.tensor([0.0, 1.0], dtype=dtype)])
    group = torch.tensor([5] * size + [9, 9])
    for scale in (True, False):
        advantage = credit.group_advantage(rewards, group, scale=scale)
        assert (advantage[:size] == 0).all()
        assert (advantage[size:] != 0).all()
    if size > 1:
        assert (credit.leave_one_out(rewards, group)[:size] == 0).all()


def test_a_group_that_begins_and_ends_with_the_same_reward_is_not_taken_for_equal():
    """Rewards 1, 0, 1: mean 2/3; the others' means are 1/2, 1, 1/2."""
    reward, group = torch.tensor([1.0, 0, 1], dtype=torch.float64), torch.zeros(3, dtype=torch.int64)
    actual = credit.group_advantage(reward, group, scale=False)
    assert_close(actual, torch.tensor([1 / 3, -2 / 3, 1 / 3], dtype=torch.float64))
    assert_close(credit.leave_one_out(reward, group), torch.tensor([0.5, -1, 0.5], dtype=torch.float64))


def test_row_order_changes_no_bit():
    random = torch.Generator().manual_seed(0)
    reward = torch.rand(96, dtype=torch.float64, generator=random)
    group = torch.randint(0, 9, (96,), generator=random) * 1000 - 4000
    for function in (credit.group_advantage, credit.leave_one_out):
        expected = function(reward, group)
        for _ in range(20):
            order = torch.randperm(96, generator=random)
            assert torch.equal(function(reward[order], group[order]), expected[order])


def test_leave_one_out_by_hand():
    """Group 2 of three: 0 - 4.5, 3 - 3, 6 - 1.5; group 1 of two: 1 - 5, 5 - 1."""
    reward = torch.tensor([0.0, 1, 3, 5, 6], dtype=torch.float64)
    group = torch.tensor([2, 1, 2, 1, 2])
    expected = torch.tensor([-4.5, -4, 0, 4, 4.5], dtype=torch.float64)
    assert_close(credit.leave_one_out(reward, group), expected)


def test_leave_one_out_refuses_a_group_of_one_by_name():
    with pytest.raises(ValueError, match="group 42 has one row"):
        credit.leave_one_out(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([7, 42, 7]))


def test_a_row_alone_gets_what_was_asked_for_it():
    reward, group = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([7, 42, 7])
    assert credit.leave_one_out(reward, group, singleton=0.0).tolist() == [-2, 0, 2]
    assert credit.leave_one_out(reward, group, singleton=0.5).tolist() == [-2, 0.5, 2]


def test_by_column_compares_each_column_within_its_group_by_hand():
    """One group is rows 0 and 2, the other rows 1 and 3: each entry less the other row's in the same column."""
    returns = torch.tensor([[1.0, 2], [10, 20], [4, 8], [30, 70]])
    for ids in ([5, -1, 5, -1], [0, 1, 0, 1], [0, 2, 0, 2]):
        actual = credit.by_column(credit.leave_one_out, returns, torch.tensor(ids))
        assert actual.tolist() == [[-3, -6], [-20, -50], [3, 6], [20, 50]]
    with pytest.raises(ValueError, match="2 dimension"):
        credit.by_column(credit.leave_one_out, returns[0], torch.tensor([5, -1]))


def test_shapes_dtypes_and_ranges_are_checked():
    x, mask = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"value \[2, 2\]"):
        credit.gae(x, x[:, :2], mask, 1.0, 1.0)
    with pytest.raises(ValueError, match=r"reward \[2\]"):
        credit.reward_to_go(x[:, 0], mask)
    with pytest.raises(ValueError, match="2 dimension"):
        credit.reward_to_go(x[:, 0], mask[:, 0])
    with pytest.raises(ValueError, match=r"torch\.bool"):
        credit.trajectory_return(x, mask.float())
    with pytest.raises(ValueError, match=r"gamma=1\.5"):
        credit.reward_to_go(x, mask, gamma=1.5)
    with pytest.raises(ValueError, match=r"lam=-0\.1"):
        credit.gae(x, x, mask, 1.0, -0.1)
    with pytest.raises(ValueError, match=r"group \[2\]"):
        credit.group_advantage(torch.zeros(3), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="1 dimension"):
        credit.leave_one_out(x, mask.long())
    with pytest.raises(ValueError, match="empty"):
        credit.group_advantage(torch.zeros(0), torch.zeros(0, dtype=torch.int64))


def test_dtype_is_kept():
    x, mask, group = torch.rand(2, 3), torch.ones(2, 3, dtype=torch.bool), torch.tensor([0, 0])
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        y = x.to(dtype)
        assert credit.trajectory_return(y, mask).dtype == dtype
        assert credit.reward_to_go(y, mask, 0.9).dtype == dtype
        assert [t.dtype for t in credit.gae(y, y, mask, 0.9, 0.9)] == [dtype, dtype]
        assert credit.group_advantage(y[:, 0], group).dtype == dtype
        assert credit.leave_one_out(y[:, 0], group).dtype == dtype
