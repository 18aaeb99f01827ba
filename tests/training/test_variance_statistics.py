"""The statistics of `rlhf-pg variance` on vectors whose figures are known beforehand."""

import math
import statistics
from itertools import permutations

import pytest
import torch

from rlhf_pg.training.variance_statistics import Bootstrap, Sketch, coinciding, gram, summaries, trace_and_signal


def measured(*vectors):
    """The gradients [n, d] of each estimator as one tensor."""
    return torch.stack(list(vectors)).float()


def gaussian(groups, mean, deviation, seed):
    noise = torch.randn(groups, len(mean), generator=torch.Generator().manual_seed(seed))
    return torch.tensor(mean) + noise * torch.tensor(deviation)


def test_trace_and_signal_are_those_of_a_slow_loop_also_when_a_resample_holds_a_group_twice():
    vectors = gaussian(5, [1.0, -2.0, 0.5], [1.0, 2.0, 0.1], seed=0).double()
    for drawn in ([0, 1, 2, 3, 4], [0, 0, 2, 4, 4]):
        held = vectors[drawn]
        mean = held.mean(dim=0)
        trace = sum(float(((v - mean) ** 2).sum()) for v in held) / 4
        different = [(a, b) for a, b in permutations(range(5), 2) if drawn[a] != drawn[b]]
        signal = sum(float(held[a] @ held[b]) for a, b in different) / 20
        weights = torch.bincount(torch.tensor(drawn), minlength=5).double()[None]
        found = trace_and_signal(gram(vectors.float()), weights)
        assert found[0].item() == pytest.approx(trace, rel=1e-5)
        assert found[1].item() == pytest.approx(signal, rel=1e-5)


def test_gaussian_gradients_have_the_known_variance_signal_and_ratio_and_the_interval_holds_it():
    mean, deviation = [3.0, 0.0, -4.0], [1.0, 2.0, 2.0]  # |mean|^2 25, trace 9
    found, held, ratio_held = [], 0, 0
    for seed in range(60):
        given = measured(gaussian(80, mean, deviation, seed))
        (summary,) = summaries(given, 4, 0, Bootstrap(given, resamples=200))
        low, high = summary.variance_interval
        held += low <= 9 / 4 <= high
        low, high = summary.snr_interval or (0, 0)
        ratio_held += low <= 25 / (9 / 4) <= high
        found.append(summary)
    assert statistics.fmean(s.trace for s in found) == pytest.approx(9, rel=0.03)
    assert statistics.fmean(s.variance for s in found) == pytest.approx(9 / 4, rel=0.03)
    assert statistics.fmean(s.signal for s in found) == pytest.approx(25, rel=0.03)
    assert statistics.fmean(s.snr for s in found) == pytest.approx(25 / (9 / 4), rel=0.04)
    assert held >= 51 and ratio_held >= 51  # 95 % of 60 are 57


def test_without_signal_the_estimated_signal_is_around_zero_and_not_the_noise():
    signals = []
    for seed in range(200):
        given = measured(gaussian(10, [0.0] * 4, [1.0] * 4, seed))
        signals.append(Bootstrap(given, resamples=1).point[0][1])
    error = statistics.stdev(signals) / math.sqrt(200)
    assert abs(statistics.fmean(signals)) < 4 * error
    assert error < 0.05  # |mean|^2 itself would be around 0.4
    assert min(signals) < 0


def test_the_bootstrap_is_centred_on_the_point_estimate():
    given = measured(gaussian(12, [1.0, 2.0], [2.0, 1.0], seed=3))
    bootstrap = Bootstrap(given, resamples=20_000)
    for point, resampled in zip(bootstrap.point[0], bootstrap.resampled[0], strict=True):
        error = float(resampled.std()) / math.sqrt(20_000)
        assert abs(float(resampled.mean()) - point) < 4 * error


def test_ratios_are_paired_twice_the_gradient_has_four_times_the_variance_without_any_doubt():
    vectors = gaussian(20, [1.0, 0.0], [1.0, 1.0], seed=0)
    bootstrap = Bootstrap(measured(vectors, 2 * vectors))
    ratio, (low, high) = bootstrap.ratio(1, 0) or (0, (0, 0))
    assert (ratio, low, high) == pytest.approx((4, 4, 4), rel=1e-6)
    assert bootstrap.ratio(0, 1) == (pytest.approx(0.25), (pytest.approx(0.25), pytest.approx(0.25)))


def test_a_step_is_compared_with_the_groups_of_the_other_steps_only():
    first = torch.tensor([[1.0, 0.0], [1.0, 0.0], [3.0, 4.0], [3.0, 4.0], [0.0, 1.0]])  # two steps and a half
    second = torch.tensor([[0.0, 2.0], [0.0, 0.0], [-1.0, 0.0], [0.0, 0.0], [5.0, 5.0]])
    given = measured(first, second)
    a, b = summaries(given, 2, 0, Bootstrap(given, resamples=5))
    rest = [(6, 9), (2, 1)]  # of `first` without groups 0 and 1; without 2 and 3
    assert a.cosines == pytest.approx([6 / math.hypot(*rest[0]), (3 * 2 + 4 * 1) / 5 / math.hypot(*rest[1])])
    assert len(summaries(given[:, :3], 2, 0, Bootstrap(given[:, :3], resamples=5))[0].cosines) == 1
    assert summaries(given[:, :2], 2, 0, Bootstrap(given[:, :2], resamples=5))[0].cosines == []
    assert b.cosines == pytest.approx([9 / math.hypot(*rest[0]), -2 / math.hypot(*rest[1])])


def test_gradients_that_are_all_zero_have_no_ratio_no_snr_and_no_cosine():
    given = measured(torch.zeros(4, 3), torch.ones(4, 3))
    bootstrap = Bootstrap(given, resamples=10)
    nothing, constant = summaries(given, 2, 1, bootstrap)
    assert (nothing.trace, nothing.snr, nothing.snr_interval, nothing.cosines) == (0, None, None, [])
    assert constant.trace == pytest.approx(0, abs=1e-12)
    assert bootstrap.ratio(1, 0) is None


def test_a_sketch_keeps_inner_products_on_average_and_within_its_bound():
    x, y = gaussian(2, [1.0] * 50, [1.0] * 50, seed=1)
    error = [float(Sketch(50, 8, seed)(x) @ Sketch(50, 8, seed)(y)) - float(x @ y) for seed in range(4000)]
    assert abs(statistics.fmean(error)) < 4 * statistics.stdev(error) / math.sqrt(4000)
    bound = (float(x @ y) ** 2 + float(x @ x) * float(y @ y)) / 8
    assert 0.5 * bound < statistics.variance(error) < 1.1 * bound


def test_a_sketch_is_linear_the_same_every_time_and_the_identity_where_there_is_room():
    x, y = gaussian(2, [0.0] * 50, [1.0] * 50, seed=1)
    sketch = Sketch(50, 8, seed=5)
    assert sketch(x).shape == (8,)
    assert torch.allclose(sketch(x + 2 * y), sketch(x) + 2 * Sketch(50, 8, seed=5)(y), atol=1e-5)
    assert torch.equal(Sketch(50, 50)(x), x) and torch.equal(Sketch(50, 99)(x), x)


def test_the_trace_of_sketched_gradients_is_unbiased():
    vectors = gaussian(6, [2.0] * 40, [1.0] * 40, seed=2)
    once = torch.ones(1, 6, dtype=torch.float64)
    exact = float(((vectors - vectors.mean(dim=0)) ** 2).sum()) / 5
    found = []
    for seed in range(3000):
        kept = torch.stack([Sketch(40, 10, seed)(v) for v in vectors])
        found.append(float(trace_and_signal(gram(kept), once)[0]))
    assert abs(statistics.fmean(found) - exact) < 4 * statistics.stdev(found) / math.sqrt(3000)
    assert 0.01 * exact < statistics.stdev(found) < math.sqrt(2 / 10) * exact  # however large the mean is


def test_estimators_whose_gradients_agree_in_every_group_are_named():
    a, b = gaussian(3, [1.0, 1.0], [1.0, 1.0], seed=0), gaussian(3, [1.0, 1.0], [1.0, 1.0], seed=1)
    assert coinciding(torch.stack([a, b, a])) == [(0, 2, 0.0)]
    assert coinciding(torch.zeros(2, 3, 4)) == []
