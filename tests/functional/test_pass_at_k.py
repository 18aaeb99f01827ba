from itertools import combinations

import pytest
import torch
from torch.testing import assert_close

from rlhf_pg.functional.pass_at_k import bootstrap_interval, pass_at_k


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_equals_the_share_of_subsets_that_hold_a_right_sample(n):
    for c in range(n + 1):
        right = [True] * c + [False] * (n - c)
        for k in range(1, n + 1):
            subsets = [any(subset) for subset in combinations(right, k)]
            assert pass_at_k(n, c, k).item() == pytest.approx(sum(subsets) / len(subsets), abs=1e-12)


def test_is_vectorised_over_problems_with_their_own_n():
    actual = pass_at_k(torch.tensor([4, 2, 10]), torch.tensor([1, 0, 9]), k=2)
    assert_close(actual, torch.tensor([0.5, 0.0, 1.0], dtype=torch.float64))
    assert pass_at_k(4, [0, 1, 4], 1).tolist() == [0.0, 0.25, 1.0]


def test_is_unbiased_over_binomial_samples():
    """E over c ~ Binomial(6, p) of pass@3 is 1 - (1 - p)^3."""
    p, chance = 0.3, [1, 6, 15, 20, 15, 6, 1]
    weights = torch.tensor([chance[c] * p**c * (1 - p) ** (6 - c) for c in range(7)], dtype=torch.float64)
    assert (weights * pass_at_k(6, list(range(7)), 3)).sum().item() == pytest.approx(1 - 0.7**3, abs=1e-12)


def test_large_counts_neither_overflow_nor_round():
    """n 10,000, c 1, k 100: exactly k / n."""
    assert pass_at_k(10_000, 1, 100).item() == pytest.approx(0.01, abs=1e-12)
    assert pass_at_k(10_000, 0, 100).item() == 0.0
    assert pass_at_k(10_000, 9_901, 100).item() == 1.0


@pytest.mark.parametrize(("n", "c", "k"), [(4, 1, 0), (4, 1, 5), ([8, 3], [1, 1], 4), (4, 5, 1), (4, -1, 1)])
def test_impossible_counts_are_refused(n, c, k):
    with pytest.raises(ValueError, match=r"k=|c must"):
        pass_at_k(n, c, k)


def test_interval_is_near_the_normal_one_on_a_large_coin():
    """Mean 0.3 of 400 problems: 0.3 +- 1.96 sqrt(0.3 * 0.7 / 400) = 0.3 +- 0.0449."""
    low, high = bootstrap_interval([1.0] * 120 + [0.0] * 280)
    assert low == pytest.approx(0.3 - 0.0449, abs=0.006)
    assert high == pytest.approx(0.3 + 0.0449, abs=0.006)


def test_interval_of_two_problems_by_hand():
    """Means of two draws from {0, 1}: 0, 1/2, 1 with chances 1/4, 1/2, 1/4, so the middle 40 % is 1/2 alone."""
    assert bootstrap_interval([0.0, 1.0], confidence=0.4) == (0.5, 0.5)
    assert bootstrap_interval([0.0, 1.0], confidence=0.6) == (0.0, 1.0)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    random = torch.Generator().manual_seed(0)
    samples = (torch.rand(100, 60, generator=random) < 0.5).double()
    intervals = [bootstrap_interval(row, confidence=0.8, resamples=100, seed=i) for i, row in enumerate(samples)]
    assert 0.7 < sum(low <= 0.5 <= high for low, high in intervals) / 100 < 0.9


def test_interval_depends_on_the_seed_alone_and_leaves_the_global_stream():
    values = torch.rand(30)
    state = torch.get_rng_state()
    first = bootstrap_interval(values, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert first == bootstrap_interval(values, seed=1)
    assert first != bootstrap_interval(values, seed=2)


def test_interval_of_one_problem_is_a_point_and_of_none_an_error():
    assert bootstrap_interval([0.25]) == (0.25, 0.25)
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_interval([])
    with pytest.raises(ValueError, match="confidence"):
        bootstrap_interval([0.5], confidence=95)
