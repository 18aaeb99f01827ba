"""Random streams depend on nothing but their name, and a token is drawn with exactly its probability."""

import hashlib
import math

import numpy as np
import pytest
import torch

from rlhf_pg.rollout.sampling import choose, uniforms
from rlhf_pg.types import Sampling
from tests.tolerance import rounding

ONE = Sampling(samples=1, max_new_tokens=1)


def draw(probabilities, uniform, sampling=ONE):
    """Tokens for one distribution [V] at several uniforms [n]."""
    logits = torch.tensor(probabilities, dtype=torch.float64).log().expand(len(uniform), -1)
    return choose(logits, torch.tensor(uniform, dtype=torch.float64), sampling)


def near(*expected, largest=2.5):
    """Return the float32 log-probs of logits up to `largest`: quotient, exp, sum of 4, log and two differences."""
    return pytest.approx(list(expected), rel=0, abs=rounding(torch.float32, 2 * largest, operations=10))


def test_a_stream_is_fixed_by_seed_step_prompt_and_index():
    base = uniforms(Sampling(2, 100, seed=1, step=2), "train/1", 0)
    assert torch.equal(base, uniforms(Sampling(9, 100, temperature=0.5, seed=1, step=2), "train/1", 0))
    others = [
        uniforms(Sampling(2, 100, seed=2, step=2), "train/1", 0),
        uniforms(Sampling(2, 100, seed=1, step=3), "train/1", 0),
        uniforms(Sampling(2, 100, seed=1, step=2), "train/2", 0),
        uniforms(Sampling(2, 100, seed=1, step=2), "train/1", 1),
        uniforms(Sampling(2, 100, seed=11, step=2), "1/0", 0),
        uniforms(Sampling(2, 100, seed=1, step=12), "1/0", 0),
    ]
    assert len({tuple(stream.tolist()) for stream in [base, *others]}) == 7


def philox(key: int) -> list[float]:
    """Philox 4x64 with 10 rounds, counter 1, from the paper: its first four words as 53-bit fractions."""
    full, counter, keys = 2**64 - 1, [1, 0, 0, 0], [key & (2**64 - 1), key >> 64]
    for _ in range(10):
        a, b = counter[0] * 0xD2E7470EE14C6C93, counter[2] * 0xCA5A826395121157
        counter = [(b >> 64) ^ counter[1] ^ keys[0], b & full, (a >> 64) ^ counter[3] ^ keys[1], a & full]
        keys = [(keys[0] + 0x9E3779B97F4A7C15) & full, (keys[1] + 0xBB67AE8584CAA73B) & full]
    return [(word >> 11) / 2**53 for word in counter]


def test_streams_are_the_same_on_every_machine_and_release():
    """A resumed run goes on with the numbers it began with: they are Philox under a hash of the name, nothing else."""
    key = int.from_bytes(hashlib.blake2b(b"5/7/2/train/17", digest_size=16).digest(), "little")
    assert uniforms(Sampling(1, 4, seed=5, step=7), "train/17", 2).tolist() == philox(key)


def test_a_stream_is_uniform_and_a_longer_one_begins_the_same():
    stream = uniforms(Sampling(1, 20_000), "a", 0)
    assert stream.dtype == torch.float64 and stream.min() >= 0 and stream.max() < 1
    assert torch.equal(stream[:50], uniforms(Sampling(1, 50), "a", 0))
    share = stream.mul(10).long().bincount(minlength=10) / 20_000
    assert (share - 0.1).abs().max() < 0.01  # 4.7 standard deviations
    assert torch.corrcoef(torch.stack([stream[:-1], stream[1:]]))[0, 1].abs() < 0.03


def test_streams_leave_torch_and_numpy_generators_alone():
    before = torch.get_rng_state(), repr(np.random.get_state())
    uniforms(ONE, "a", 0)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == repr(np.random.get_state())


def test_a_token_owns_its_share_of_the_unit_interval_in_order():
    tokens, logp = draw([0.25, 0.5, 0.25], [0.0, 0.24, 0.26, 0.74, 0.76, 1 - 2**-53])
    assert tokens.tolist() == [0, 0, 1, 1, 2, 2]
    assert logp.tolist() == near(*(math.log(p) for p in (0.25, 0.25, 0.5, 0.5, 0.25, 0.25)))
    assert logp.dtype == torch.float32


def test_a_token_of_probability_zero_is_never_drawn():
    edges = [0.0, 2**-53, 0.5 - 2**-53, 0.5, 0.5 + 2**-52, 1 - 2**-53]
    tokens, logp = draw([0, 0, 0.5, 0, 0.5, 0, 0], edges)
    assert set(tokens.tolist()) == {2, 4} and tokens[0] == 2 and tokens[-1] == 4
    assert logp.isfinite().all()


def test_the_tail_of_a_large_vocabulary_keeps_its_probability():
    """150,000 tokens, the second half of them 1e-4 as likely: every stretch is hit as often as it should be."""
    size, n = 150_000, 400
    logits = torch.zeros(1, size)
    logits[0, size // 2 :] = math.log(1e-4)
    exact = torch.softmax(logits.double(), -1).cumsum(-1)[0]
    uniform = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    uniform[-40:] = 1 - 1e-4 * uniform[:40]  # inside the tail, of 1e-4 in all
    tokens = torch.cat([choose(logits, u[None], ONE)[0] for u in uniform])
    expected = torch.searchsorted(exact, uniform, right=True)
    assert (tokens - expected).abs().max() <= 2
    assert (tokens >= size // 2).sum() == 40


def test_temperature_divides_the_logits():
    logits, u = torch.tensor([[1.0, 3.0, 2.0]]), torch.tensor([0.9])
    tokens, logp = choose(logits, u.double(), Sampling(1, 1, temperature=0.5))
    weights = [math.exp(2), math.exp(6), math.exp(4)]
    assert tokens.tolist() == [2] and (weights[0] + weights[1]) / sum(weights) < 0.9
    assert [logp.item()] == near(4 - math.log(sum(weights)), largest=6)


def test_temperature_zero_takes_the_best_token_whatever_the_uniform():
    logits = torch.tensor([[1.0, 3.0, 2.0]]).expand(2, 3)
    tokens, logp = choose(logits, torch.tensor([0.0, 0.99]).double(), Sampling(1, 1, temperature=0))
    assert tokens.tolist() == [1, 1]
    assert [logp[0].item()] == near(3 - math.log(math.exp(1) + math.exp(3) + math.exp(2)), largest=3)


@pytest.mark.parametrize(
    ("top_k", "top_p", "allowed"),
    [(1, 1.0, [3]), (2, 1.0, [1, 3]), (9, 1.0, [0, 1, 2, 3]), (0, 0.4, [3]), (0, 0.41, [1, 3]), (3, 0.75, [1, 3])],
)
def test_truncation_keeps_the_smallest_likely_set_and_the_untruncated_logp(top_k, top_p, allowed):
    p = [0.1, 0.3, 0.2, 0.4]  # within the top 3, tokens 3 and 1 have 0.7 / 0.9 = 0.78
    grid = [(i + 0.5) / 100 for i in range(100)]
    tokens, logp = draw(p, grid, Sampling(1, 1, top_p=top_p, top_k=top_k))
    assert sorted(set(tokens.tolist())) == allowed
    for token in allowed:
        share = p[token] / sum(p[i] for i in allowed)
        assert (tokens == token).sum().item() == pytest.approx(100 * share, abs=1)
        assert [logp[tokens == token][0].item()] == near(math.log(p[token]))


def test_low_precision_logits_are_normalised_in_float32():
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    tokens, logp = choose(logits, torch.full((4,), 0.5).double(), ONE)
    assert torch.allclose(logp, logits.float().log_softmax(-1).gather(1, tokens[:, None])[:, 0])


def test_a_row_that_is_not_finite_shows_in_its_logp_and_breaks_no_index():
    logits = torch.zeros(3, 4)
    logits[0, 1], logits[1] = torch.nan, torch.inf
    tokens, logp = choose(logits, torch.full((3,), 0.5).double(), ONE)
    assert logp.isfinite().tolist() == [False, False, True]
    assert tokens.min() >= 0 and tokens.max() < 4
