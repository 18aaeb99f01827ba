"""The biases of the estimators that have one: what they follow instead, exactly, and how far off that is here.

Each number is the cosine between the expected step and the true gradient in the toy world, and where it says something,
the ratio of their lengths. They are properties of the equations, not of the code: the code is held to the exact
statement beside them.
"""

from functools import partial
from statistics import mean, stdev

import pytest
import torch
from torch.testing import assert_close

from rlhf_pg.algorithms.base import resolve
from tests.toy_world import LENGTH, expected_step

assert_exact = partial(assert_close, rtol=0, atol=1e-9)


def cosine(actual, toy):
    return torch.cosine_similarity(actual.flatten(), toy.true_gradient().flatten(), dim=0).item()


def slowly(toy, coefficient, old=None):
    """Sum over sequences and tokens of p * coefficient(row, sampled columns, i) * grad log pi, each by hand."""
    p, pi, total = toy.probability(old).tolist(), toy.theta.detach().softmax(dim=1), torch.zeros_like(toy.theta)
    for row in range(len(toy.tokens)):
        at = toy.mask[row].nonzero().flatten().tolist()
        for i, t in enumerate(at):
            state, token, weight = toy.state[row, t], toy.tokens[row, t], p[row] * coefficient(row, at, i)
            total[state] -= weight * pi[state]
            total[state, token] += weight
    return total


def test_the_slow_sum_has_the_true_gradient_for_the_return(toy):
    assert_exact(slowly(toy, lambda row, at, i: sum(toy.reward[row, t].item() for t in at)), toy.true_gradient())


def test_the_sequence_denominator_follows_the_reward_per_token(toy):
    actual = expected_step(toy, resolve("reinforce"), 1, returns="trajectory", denominator="sequence")
    assert_exact(actual, toy.true_gradient(toy.row_reward() / toy.length()))
    assert cosine(actual, toy) == pytest.approx(0.982, abs=1e-3)


def test_the_token_denominator_follows_rewards_weighed_by_length_less_so_in_larger_batches(toy):
    """A batch of two divides by both lengths: row i counts sum_j p_j / (len_i + len_j). One alone is "sequence"."""
    single, pair = (
        expected_step(toy, resolve("reinforce"), n, returns="trajectory", denominator="token") for n in (1, 2)
    )
    length, p = toy.length(), toy.probability().detach()
    assert_exact(single, toy.true_gradient(toy.row_reward() / length))
    weight = (p / (length[:, None] + length)).sum(dim=1)
    assert_exact(pair, toy.true_gradient(2 * toy.row_reward() * weight))
    assert cosine(pair, toy) == pytest.approx(0.996, abs=1e-3)


def test_the_group_std_follows_ranks(toy):
    """In a pair (r - mean) / std is +-1/sqrt(2): the size of the reward is lost, its rank is left."""
    actual = LENGTH * expected_step(toy, resolve("grpo"), 2, denominator="constant", std_eps=1e-13)
    reward = toy.row_reward()
    rank = (toy.probability().detach() * (reward[:, None] - reward[None, :]).sign()).sum(dim=1) / 2**0.5
    assert_exact(actual, toy.true_gradient(rank))
    assert cosine(actual, toy) == pytest.approx(0.981, abs=1e-3)


def test_grpo_as_published_without_std_follows_reward_per_token_around_a_mean_per_token(toy):
    """In a pair: (r_i - r_j) / 2 / len_i. The baseline no longer drops out, since it is divided by the row's length."""
    actual = expected_step(toy, resolve("grpo"), 2, scale_by_std=False)
    reward, length, p = toy.row_reward(), toy.length(), toy.probability().detach()
    expected = toy.true_gradient(reward / length) - (p * reward).sum() * toy.true_gradient(1 / length)
    assert_exact(actual, 0.5 * expected)
    assert cosine(actual, toy) == pytest.approx(0.940, abs=1e-3)


def test_grpo_as_published(toy):
    actual = expected_step(toy, resolve("grpo"), 2, std_eps=1e-13)
    reward, length, p = toy.row_reward(), toy.length(), toy.probability().detach()
    advantage = (p * (reward[:, None] - reward[None, :]).sign()).sum(dim=1) / 2**0.5
    assert_exact(actual, toy.true_gradient(advantage / length))
    assert cosine(actual, toy) == pytest.approx(0.955, abs=1e-3)


def test_standardising_over_a_pair_of_rows_turns_ppo(toy):
    """Over the tokens of both: A less their mean, over their std (n - 1) + 1e-8."""
    value, p = toy.table(1), toy.probability().tolist()
    actual = LENGTH * expected_step(toy, resolve("ppo"), 2, value=value, lam=1.0, denominator="constant")
    raw = []
    for row in range(len(p)):
        at = toy.mask[row].nonzero().flatten().tolist()
        raw.append([sum(toy.reward[row, k].item() for k in at if k >= t) - value[row, t].item() for t in at])

    def expected_advantage(row, at, i):
        total = 0.0
        for other in range(len(p)):
            both = raw[row] + raw[other]
            std = stdev(both) if row != other or len(at) > 1 else 0.0
            total += p[other] * (raw[row][i] - mean(both)) / (std + 1e-8)
        return total

    assert_exact(actual, slowly(toy, expected_advantage))
    assert cosine(actual, toy) == pytest.approx(0.932, abs=1e-3)


def test_lambda_below_one_with_a_wrong_critic_is_biased(toy):
    """The advantage as a weighted sum of one-step differences."""
    value = toy.table(1)

    def advantage(lam, row, at, i):
        v = [value[row, t].item() for t in at] + [0.0]
        delta = [toy.reward[row, t].item() + v[k + 1] - v[k] for k, t in enumerate(at)]
        return sum(lam ** (k - i) * delta[k] for k in range(i, len(at)))

    cosines = []
    for lam in (1.0, 0.95, 0.5, 0.0):
        options = dict(value=value, lam=lam, standardise=False, denominator="constant")
        actual = LENGTH * expected_step(toy, resolve("ppo"), 1, **options)
        assert_exact(actual, slowly(toy, partial(advantage, lam)))
        cosines.append(cosine(actual, toy))
    assert cosines == pytest.approx([1.0, 0.9999, 0.985, 0.928], abs=1e-3)


def discounted(toy, gamma):
    """Gradient of E[sum_t gamma^t r_t], t counting sampled tokens."""
    row_reward = torch.zeros(len(toy.tokens), dtype=torch.float64)
    for row in range(len(toy.tokens)):
        at = toy.mask[row].nonzero().flatten().tolist()
        row_reward[row] = sum(gamma**i * toy.reward[row, t].item() for i, t in enumerate(at))
    return toy.true_gradient(row_reward)


def test_a_discount_leaves_out_its_factor_of_time(toy):
    """gamma 0.5: neither the plain gradient nor the discounted objective's; gamma^t in each term makes it that one."""

    def to_go(row, at, i, weight=1.0):
        return weight**i * sum(0.5 ** (k - i) * toy.reward[row, at[k]].item() for k in range(i, len(at)))

    actual = LENGTH * expected_step(toy, resolve("reinforce"), 1, gamma=0.5)
    assert_exact(actual, slowly(toy, to_go))
    assert_exact(slowly(toy, partial(to_go, weight=0.5)), discounted(toy, 0.5))
    towards = torch.cosine_similarity(actual.flatten(), discounted(toy, 0.5).flatten(), dim=0).item()
    assert (towards, cosine(actual, toy)) == pytest.approx((0.952, 0.969), abs=1e-3)


def test_with_the_factor_of_time_the_discounted_gradient_is_exact(toy):
    """What is left out above is all that is: the record's advantage times gamma^(tokens sampled before)."""
    rows = list(range(len(toy.tokens)))
    advantage = resolve("reinforce").bind({"gamma": 0.5}).credit(toy.batch(rows), toy.signals(rows)).advantage
    steps = toy.mask.cumsum(dim=1) - 1  # [K, C]
    assert_exact(toy.expected_gradient(-toy.logp() * advantage * 0.5**steps), discounted(toy, 0.5))


WIDE = dict(clip_low=1.0, clip_high=1e9)
MOVED = dict(standardise=False, lam=1.0, denominator="constant")


def surrogate_gradient(toy, old, value, bounds=None):
    """Off-policy, token by token: weight * A, where weight = rho, or 0 where PPO clips."""
    rho = (toy.logp().detach() - toy.logp(old)).exp()

    def coefficient(row, at, i):
        advantage = sum(toy.reward[row, k].item() for k in at[i:]) - value[row, at[i]].item()
        ratio = rho[row, at[i]].item()
        lost = bounds and ((ratio > bounds[1] and advantage > 0) or (ratio < bounds[0] and advantage < 0))
        return 0.0 if lost else ratio * advantage

    return slowly(toy, coefficient, old)


def test_off_policy_the_surrogate_lacks_the_states_of_the_new_policy(toy):
    old, value = toy.other_theta(5, 0.5), toy.table(1)
    exact = surrogate_gradient(toy, old, value)
    assert_exact(LENGTH * expected_step(toy, resolve("trpo"), 1, old, value, denominator="constant"), exact)
    assert_exact(LENGTH * expected_step(toy, resolve("ppo"), 1, old, value, **MOVED, **WIDE), exact)
    assert cosine(exact, toy) == pytest.approx(0.997, abs=1e-3)


def test_off_policy_the_clip_loses_the_tokens_that_are_clipped(toy):
    old, value = toy.other_theta(5, 0.5), toy.table(1)
    actual = LENGTH * expected_step(toy, resolve("ppo"), 1, old, value, **MOVED, clip_low=0.2, clip_high=0.3)
    assert_exact(actual, surrogate_gradient(toy, old, value, bounds=(0.8, 1.3)))
    assert cosine(actual, toy) == pytest.approx(0.894, abs=1e-3)
    assert (actual.norm() / surrogate_gradient(toy, old, value).norm()).item() == pytest.approx(0.719, abs=1e-3)


def test_off_policy_cispo_bounds_weights_and_keeps_the_tokens(toy):
    """Pairs without std: A = (r_i - r_j) / 2; the weight is the ratio, at most 1.3."""
    old = toy.other_theta(5, 0.5)
    options = dict(surrogate="cispo", scale_by_std=False, denominator="constant", clip_low=1.0, clip_high=0.3)
    actual = LENGTH * expected_step(toy, resolve("grpo"), 2, old, **options)
    reward = toy.row_reward()
    mean_reward = (toy.probability(old).detach() * reward).sum()
    weight = (toy.logp().detach() - toy.logp(old)).exp().clamp(max=1.3)
    coefficients = weight * (reward - mean_reward)[:, None] / 2
    assert_exact(actual, slowly(toy, lambda row, at, i: coefficients[row, at[i]].item(), old))
    assert cosine(actual, toy) == pytest.approx(0.998, abs=1e-3)
