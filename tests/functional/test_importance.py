"""Truncated weights and the effective sample size, by hand."""

import math

import pytest
import torch

from rlhf_pg.functional import importance, normalize


def test_the_weight_is_trainer_over_engine_probability_and_never_above_the_cap():
    logp = torch.tensor([[0.5, 0.2, 0.3]], dtype=torch.float64).log()
    rollout = torch.tensor([[0.25, 0.4, 0.1]], dtype=torch.float64).log()
    assert importance.truncated(logp, rollout, 2.5)[0].tolist() == pytest.approx([2.0, 0.5, 2.5])
    assert importance.truncated(logp, rollout, math.inf)[0].tolist() == pytest.approx([2.0, 0.5, 3.0])
    assert importance.is_capped(logp, rollout, 2.5).tolist() == [[0, 0, 1]]


def test_a_ratio_too_large_for_a_float_is_the_cap():
    near, far = torch.tensor([[-1.0]]), torch.tensor([[-500.0]])
    assert importance.truncated(near, far, 2.0).item() == pytest.approx(2.0)
    assert importance.truncated(far, near, 2.0).item() == 0.0


def test_a_masked_weight_is_the_ratio_within_the_bounds_and_nothing_outside_them_on_either_side():
    logp = torch.tensor([[0.5, 0.2, 0.3, 0.1, 0.4]], dtype=torch.float64).log()
    rollout = torch.tensor([[0.3, 0.45, 0.1, 0.3, 0.4]], dtype=torch.float64).log()  # ratios 5/3, 4/9, 3, 1/3, 1
    assert importance.masked(logp, rollout, 2.5)[0].tolist() == pytest.approx([5 / 3, 4 / 9, 0, 0, 1])
    assert importance.is_masked(logp, rollout, 2.5).tolist() == [[0, 0, 1, 1, 0]]
    assert importance.masked(torch.tensor([[math.nan]]), rollout[:, :1], 2.5).item() == 0.0
    with pytest.raises(ValueError, match="at least 1"):
        importance.masked(logp, rollout, 0.5)


def test_a_row_is_over_by_the_mean_of_its_sampled_tokens_alone():
    kl = torch.tensor([[0.1, 0.3, 9.0], [0.1, 0.29, 9.0], [0.5, 0.0, 0.0], [math.nan, 0.0, 0.0]])
    mask = torch.tensor([[True, True, False], [True, True, False], [True, True, True], [True, True, True]])
    assert importance.rows_over(kl, mask, 0.195).tolist() == [True, False, False, True]
    assert importance.rows_over(kl, mask, 0.16).tolist() == [True, True, True, True]


def test_no_gradient_flows_through_a_weight_and_half_precision_is_widened():
    logp = torch.tensor([[-1.0]], requires_grad=True)
    assert not importance.truncated(logp, torch.tensor([[-2.0]]), 2.0).requires_grad
    half = torch.tensor([[-1.0]], dtype=torch.bfloat16)
    assert importance.truncated(half, half, 2.0).dtype == torch.float32
    assert importance.truncated(logp.double(), half, 2.0).dtype == torch.float64


@pytest.mark.parametrize(
    ("weights", "share"),
    [
        ([1.0, 1.0, 1.0, 1.0], 1.0),
        ([3.0, 3.0], 1.0),
        ([1.0, 0.0, 0.0, 0.0], 0.25),
        ([2.0, 1.0], 0.9),
        ([0.0, 0.0], 0.0),
    ],
)
def test_effective_share_by_hand(weights, share):
    row = torch.tensor([[*weights, math.nan]])
    moments = normalize.moments(row, ~row.isnan())
    assert importance.effective_share(moments).item() == pytest.approx(share)
    assert importance.effective_share(moments / 7).item() == pytest.approx(share)


def test_wrong_shapes_and_caps_are_refused():
    with pytest.raises(ValueError, match=r"shapes differ: logp \[1, 2\], logp_rollout \[2, 1\]"):
        importance.truncated(torch.zeros(1, 2), torch.zeros(2, 1), 2.0)
    for cap in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="must be positive"):
            importance.truncated(torch.zeros(1, 1), torch.zeros(1, 1), cap)
