"""Which algorithm becomes which, batch by batch, and how the real records treat padding, holes and lonely rows."""

from functools import partial
from math import nan

import pytest
import torch
from torch.testing import assert_close

from rlhf_pg.algorithms.base import resolve
from rlhf_pg.types import Credit
from tests.toy_world import build, loss_of

assert_exact = partial(assert_close, rtol=0, atol=1e-12)
ROWS = [3, 0, 14, 7, 3]  # one row twice: equal rewards too


def gradient(toy, name, rows=ROWS, value=None, old=None, **options):
    return toy.gradient(loss_of(toy, resolve(name).bind(options), rows, old, value))


def advantage(toy, name, rows=ROWS, value=None, **options) -> Credit:
    return resolve(name).bind(options).credit(toy.batch(rows), toy.signals(rows, value=value))


def test_rloo_is_reinforce_with_the_row_return_and_leave_one_out(toy):
    expected = gradient(toy, "reinforce_baseline", baseline="leave_one_out", returns="trajectory")
    assert_exact(gradient(toy, "rloo"), expected)


def test_grpo_without_std_and_clip_is_reinforce_with_the_group_mean(toy):
    expected = gradient(toy, "reinforce_baseline", baseline="group_mean", returns="trajectory")
    free = dict(scale_by_std=False, denominator="constant", clip_low=1.0, clip_high=1e9)
    assert_exact(gradient(toy, "grpo", **free), expected)
    assert_exact(
        gradient(toy, "grpo", scale_by_std=False, denominator="constant"), expected
    )  # ratio 1: nothing to clip


@pytest.mark.parametrize("gamma", [1.0, 0.7])
def test_ppo_and_trpo_with_lambda_one_are_reinforce_with_a_critic_at_ratio_one(toy, gamma):
    value = toy.table(1)
    expected = gradient(toy, "reinforce_baseline", value=value, gamma=gamma)
    options = dict(value=value, gamma=gamma, lam=1.0, standardise=False, denominator="constant")
    assert_exact(gradient(toy, "ppo", **options), expected)
    assert_exact(gradient(toy, "trpo", **options), expected)
    credit = advantage(toy, "reinforce_baseline", value=value, gamma=gamma)
    assert credit.returns is not None
    for name in ("ppo", "trpo"):
        actual = advantage(toy, name, value=value, gamma=gamma, lam=1.0)
        assert_exact(actual.advantage, credit.advantage)
        assert_exact(actual.returns, credit.returns)


def test_a_critic_that_knows_nothing_leaves_reinforce(toy):
    value = torch.zeros_like(toy.reward)
    assert_exact(gradient(toy, "reinforce_baseline", value=value), gradient(toy, "reinforce"))


def test_off_policy_trpo_is_ppo_without_its_clip(toy):
    inputs = dict(value=toy.table(1), old=toy.other_theta(5))
    wide = dict(lam=1.0, standardise=False, clip_low=1.0, clip_high=1e9)
    assert_exact(gradient(toy, "trpo", **inputs), gradient(toy, "ppo", **inputs, **wide))
    assert not torch.allclose(
        gradient(toy, "trpo", **inputs), gradient(toy, "ppo", **inputs, lam=1.0, standardise=False)
    )


def test_cispo_without_a_bound_has_the_gradient_of_the_plain_ratio(toy):
    wide = dict(old=toy.other_theta(5), clip_low=1.0, clip_high=1e9)
    assert_exact(gradient(toy, "grpo", **wide, surrogate="cispo"), gradient(toy, "grpo", **wide))


def test_gspo_is_grpo_where_no_ratio_has_moved(toy):
    assert_exact(gradient(toy, "grpo", surrogate="gspo"), gradient(toy, "grpo"))


def test_gspo_is_grpo_for_rows_of_one_token():
    toy = build(holed=False, vocabulary=4, length=1)
    inputs = dict(rows=[0, 1, 2, 3], old=toy.other_theta(5))
    assert_exact(gradient(toy, "grpo", surrogate="gspo", **inputs), gradient(toy, "grpo", **inputs))


@pytest.mark.parametrize(("low", "high"), [(1.0, 1e9), (0.1, 0.1), (0.02, 0.3)])
@pytest.mark.parametrize("seed", [5, 6, 7])
def test_gspo_has_the_value_and_gradient_of_the_papers_sequence_objective(toy, seed, low, high):
    """mean_i min(s_i A_i, clip(s_i) A_i), s_i = (pi(row) / pi_old(row))^(1 / length), equations 5 and 7."""
    old, rows, objective = toy.other_theta(seed, 0.4), list(range(len(toy.tokens))), []
    reward = toy.row_reward()
    deviation = (reward - reward.mean()) / (reward.std() + 1e-4)
    for row in rows:
        ratio = (toy.probability()[row] / toy.probability(old)[row]) ** (1 / toy.length()[row])
        bounded = ratio.clamp(1 - low, 1 + high)
        objective.append(torch.minimum(ratio * deviation[row], bounded * deviation[row]))
    expected = -torch.stack(objective).mean()
    actual = loss_of(toy, resolve("grpo").bind(dict(surrogate="gspo", clip_low=low, clip_high=high)), rows, old)
    assert_exact(actual, expected)
    assert_close(toy.gradient(actual), toy.gradient(expected), rtol=0, atol=1e-12)


def test_the_share_of_clipped_tokens_is_each_surrogates_own():
    """Ratios 1.5 and 0.5 in a row of advantage 1, 1.5 and 0.25 in one of -1.

    PPO's clip loses 1.5 up and 0.25 down; CISPO bounds all four; the rows' own ratios are sqrt(0.75) and sqrt(0.375),
    of which only the second is lost.
    """
    old = torch.zeros(2, 2, dtype=torch.float64)
    logp = torch.tensor([[1.5, 0.5], [1.5, 0.25]], dtype=torch.float64).log()
    toy = build(holed=False, vocabulary=3, length=2)
    batch, signals = toy.batch([3, 4]), toy.signals([3, 4])
    assert batch.mask.all()
    signals = type(signals)(signals.token_reward, logp_old=old)
    credit = Credit(torch.tensor([[1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64))
    expected = {"clip": [[1, 0], [0, 1]], "cispo": [[1, 1], [1, 1]], "gspo": [[0, 0], [1, 1]]}
    for surrogate, clipped in expected.items():
        metrics = resolve("grpo").bind({"surrogate": surrogate}).objective(logp, logp, batch, signals, credit).metrics
        assert metrics["clip/fraction"].tolist() == clipped, surrogate


def test_ppo_reports_the_share_that_its_own_bounds_clip():
    """Ratios 1.25 up and 0.75 down: clipped under the paper's 0.2, not under 0.3."""
    toy = build(holed=False, vocabulary=2, length=1)
    logp = torch.tensor([[1.25], [0.75]], dtype=torch.float64).log()
    signals = type(toy.signals([0, 1]))(toy.reward, logp_old=torch.zeros(2, 1, dtype=torch.float64))
    credit = Credit(torch.tensor([[1.0], [-1.0]], dtype=torch.float64))
    for options, losses, clipped in (
        ({}, [-1.2, 0.8], [1, 1]),
        ({"clip_low": 0.3}, [-1.2, 0.75], [1, 0]),
        ({"clip_high": 0.3}, [-1.25, 0.8], [0, 1]),
    ):
        actual = resolve("ppo").bind(options).objective(logp, logp, toy.batch([0, 1]), signals, credit)
        assert actual.loss.flatten().tolist() == pytest.approx(losses)
        assert actual.metrics["clip/fraction"].flatten().tolist() == clipped


NAMES = [
    ("reinforce", {}),
    ("reinforce", {"returns": "trajectory"}),
    ("reinforce_baseline", {}),
    ("reinforce_baseline", {"returns": "trajectory"}),
    ("reinforce_baseline", {"baseline": "leave_one_out"}),
    ("reinforce_baseline", {"baseline": "leave_one_out", "returns": "trajectory"}),
    ("reinforce_baseline", {"baseline": "group_mean"}),
    ("rloo", {}),
    ("ppo", {}),
    ("trpo", {}),
    ("grpo", {}),
    ("grpo", {"surrogate": "gspo"}),
    ("grpo", {"surrogate": "cispo"}),
]


@pytest.mark.parametrize(("name", "options"), NAMES)
def test_a_column_that_no_policy_sampled_changes_nothing(name, options):
    """NaN in rewards, values and all log-probs of the hole and the padding; a whole column of padding more."""
    plain, holed = build(holed=False), build(holed=True)
    steps = [gradient(t, name, value=t.table(1), old=t.other_theta(5), **options) for t in (plain, holed)]
    assert steps[0].isfinite().all()
    assert steps[0].abs().sum() > 0
    assert_exact(steps[0], steps[1])


@pytest.mark.parametrize(("name", "options"), NAMES)
def test_credit_that_is_said_to_be_row_by_row_is(toy, name, options):
    """With a critic it is said, and made in parts; a comparison within the group must not be."""
    bound = resolve(name).bind(options)
    together = advantage(toy, name, value=toy.table(1), **options)
    one_by_one = [advantage(toy, name, rows=[row], value=toy.table(1), **options).advantage for row in ROWS]
    by_row = torch.equal(torch.cat(one_by_one).nan_to_num(), together.advantage.nan_to_num())
    assert by_row or not bound.credit_by_row
    assert bound.credit_by_row == bound.needs_critic


@pytest.mark.parametrize("name", ["rloo", "reinforce_baseline", "grpo"])
def test_a_row_left_alone_by_excluded_samples_has_no_advantage(name):
    options = {"baseline": "leave_one_out"} if name == "reinforce_baseline" else {}
    actual = advantage(build(holed=False), name, rows=[7], **options).advantage
    assert (actual == 0).all()


def test_leave_one_out_compares_returns_at_the_same_token_by_hand():
    """Rows a b EOS and a EOS, rewards 1, 2, 4 and 8, 16: returns (7, 6, 4) and (24, 16, -)."""
    toy = build(holed=False)
    reward = torch.tensor([[1.0, 2, 4], [8, 16, nan]], dtype=torch.float64)
    rows = [row for row in range(len(toy.tokens)) if toy.tokens[row].tolist() in ([1, 2, 0], [1, 0, 0])]
    batch, signals = toy.batch(rows[::-1]), toy.signals(rows[::-1])
    assert batch.mask.tolist() == [[True, True, True], [True, True, False]]
    signals = type(signals)(reward)

    def advantages(**options):
        return resolve("reinforce_baseline").bind(options).credit(batch, signals).advantage.tolist()

    assert advantages(baseline="leave_one_out") == [[7 - 24, 6 - 16, 4 - 0], [24 - 7, 16 - 6, 0]]
    assert advantages(baseline="group_mean") == [[-8.5, -5, 2], [8.5, 5, 0]]
    assert advantages(baseline="leave_one_out", returns="trajectory") == [[-17, -17, -17], [17, 17, 0]]
