import math

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rlhf_pg.functional import logprobs
from tests.tolerance import allowance


def problem(rows=7, width=3, vocabulary=5, dtype=torch.float64):
    """hidden [M, H], weight [V, H], bias [V], all with gradient, and tokens [M] that repeat."""
    random = torch.Generator().manual_seed(0)
    shapes = ((rows, width), (vocabulary, width), (vocabulary,))
    hidden, weight, bias = (torch.randn(s, generator=random, dtype=dtype).requires_grad_() for s in shapes)
    return hidden, weight, bias, torch.randint(vocabulary, (rows,), generator=random)


def slow(hidden, weight, bias, tokens, temperature, softcap):
    """Row by row from the definitions: probabilities by exp and division, entropy by its sum."""
    logp, entropy = [], []
    for h, token in zip(hidden, tokens, strict=True):
        logits = (weight * h).sum(dim=1) + bias
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        p = (logits / temperature).exp() / (logits / temperature).exp().sum()
        logp.append(p[token].log())
        entropy.append(-(p * p.log()).sum())
    return torch.stack(logp), torch.stack(entropy)


def test_by_hand():
    """Logits (0, log 3): p = (1/4, 3/4); at temperature 1/2 odds are squared, p = (1/10, 9/10)."""
    logits, token = torch.tensor([0.0, math.log(3)], dtype=torch.float64), torch.tensor(1)
    for temperature, p in ((1.0, 0.75), (0.5, 0.9)):
        logp, entropy = logprobs.from_logits(logits, token, temperature)
        assert logp.item() == pytest.approx(math.log(p), abs=1e-12)
        assert entropy.item() == pytest.approx(-p * math.log(p) - (1 - p) * math.log(1 - p), abs=1e-12)


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", [1, 2, 3, 6, 7, 100])
def test_every_chunk_size_agrees_with_the_slow_loop_in_value_and_gradient(chunk, temperature, softcap):
    hidden, weight, bias, tokens = problem()
    up = torch.randn(2, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = slow(hidden, weight, bias, tokens, temperature, softcap)
    actual = logprobs.token_logprobs(hidden, weight, tokens, temperature, chunk, bias, softcap)
    leaves = (hidden, weight, bias)
    for got, want in zip(actual, expected, strict=True):
        assert_close(got, want, rtol=0, atol=1e-12)
    for chosen in ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0)):
        scale = torch.tensor(chosen, dtype=torch.float64)[:, None] * up
        want = torch.autograd.grad((torch.stack(expected) * scale).sum(), leaves, retain_graph=True)
        got = torch.autograd.grad((torch.stack(actual) * scale).sum(), leaves, retain_graph=True)
        for g, w in zip(got, want, strict=True):
            assert_close(g, w, rtol=0, atol=1e-12)


@pytest.mark.parametrize("used", [0, 1])
def test_one_output_alone_has_its_own_gradient(used):
    """The other output's gradient then is None, not zeros."""
    hidden, weight, bias, tokens = problem()
    leaves = (hidden, weight, bias)
    want = torch.autograd.grad(slow(hidden, weight, bias, tokens, 0.7, None)[used].sum(), leaves)
    actual = logprobs.token_logprobs(hidden, weight, tokens, 0.7, 2, bias)
    for g, w in zip(torch.autograd.grad(actual[used].sum(), leaves), want, strict=True):
        assert_close(g, w, rtol=0, atol=1e-12)


@pytest.mark.parametrize("softcap", [None, 1.5])
def test_gradcheck_of_the_chunked_path(softcap):
    hidden, weight, bias, tokens = problem(rows=5, vocabulary=4)

    def function(hidden, weight, bias):
        return logprobs.token_logprobs(hidden, weight, tokens, 0.8, 2, bias, softcap)

    assert torch.autograd.gradcheck(function, (hidden, weight, bias))


def test_a_frozen_head_or_a_frozen_body_gets_no_gradient():
    hidden, weight, _, tokens = problem()
    logprobs.token_logprobs(hidden, weight.detach(), tokens, chunk=2)[0].sum().backward()
    expected = torch.autograd.grad(slow(hidden, weight, torch.zeros(5), tokens, 1.0, None)[0].sum(), [hidden, weight])
    assert_close(hidden.grad, expected[0])
    logprobs.token_logprobs(hidden.detach(), weight, tokens, chunk=2)[0].sum().backward()
    assert_close(weight.grad, expected[1])


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor any operation made, forward or backward."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return out


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_no_tensor_larger_than_a_chunk_of_logits_is_ever_made(softcap):
    """M 60, V 50, chunk 8: at most 400 elements at once, all logits together would be 3,000."""
    hidden, weight, bias, tokens = problem(rows=60, width=4, vocabulary=50)

    def largest(chunk):
        with Largest() as seen:
            logp, entropy = logprobs.token_logprobs(hidden, weight, tokens, 0.9, chunk, bias, softcap)
            (logp.sum() + entropy.square().sum()).backward()
        return seen.elements

    assert largest(8) == 400
    assert largest(60) == 3000  # the measurement does see whole logits where they are made


def test_what_is_kept_for_the_backward_pass_is_no_larger_than_the_inputs():
    hidden, weight, bias, tokens = problem(rows=60, width=4, vocabulary=50)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (saved.append(x.numel()), x)[1], lambda x: x):
        logprobs.token_logprobs(hidden, weight, tokens, chunk=8, bias=bias)
    assert sorted(saved)[-1] == 240  # hidden; logits would be 3,000 or 400 per chunk
    assert sum(saved) <= hidden.numel() + weight.numel() + bias.numel() + 3 * 60


def test_default_chunk_bounds_the_logits_alive(monkeypatch):
    monkeypatch.setattr(logprobs, "CHUNK_LOGITS", 580)
    hidden, weight, _, tokens = problem(rows=60, width=4, vocabulary=50)
    with Largest() as seen:
        logprobs.token_logprobs(hidden, weight, tokens)[0].sum().backward()
    assert seen.elements == 11 * 50  # the 11 rows that fit


def test_the_softmax_is_float32_under_bfloat16_and_gradients_keep_the_dtype():
    hidden, weight, bias, tokens = problem(rows=40, width=8, vocabulary=30, dtype=torch.bfloat16)
    wide = h, w, b = tuple(x.detach().double().requires_grad_() for x in (hidden, weight, bias))
    slow(h, w, b, tokens, 1.0, None)[0].sum().backward()
    whole = logprobs.from_logits(torch.nn.functional.linear(hidden, weight, bias), tokens)[0].sum()
    plain = torch.autograd.grad(whole, (hidden, weight, bias))
    for chunk in (7, 100):
        hidden.grad = weight.grad = bias.grad = None
        logp, entropy = logprobs.token_logprobs(hidden, weight, tokens, chunk=chunk, bias=bias)
        assert (logp.dtype, entropy.dtype) == (torch.float32, torch.float32)
        logp.sum().backward()
        for narrow, usual, exact in zip((hidden, weight, bias), plain, wide, strict=True):
            assert narrow.grad is not None and exact.grad is not None
            assert narrow.grad.dtype == torch.bfloat16
            assert (narrow.grad - exact.grad).abs().max() <= allowance(usual, exact.grad)


def test_autocast_does_not_touch_the_projection():
    hidden, weight, _, tokens = problem(rows=6, width=64, dtype=torch.float32)
    for chunk in (2, 6):
        expected = logprobs.token_logprobs(hidden, weight, tokens, chunk=chunk)[0]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual = logprobs.token_logprobs(hidden, weight, tokens, chunk=chunk)[0]
        assert torch.equal(actual, expected)


def test_large_logits_do_not_overflow():
    logp, entropy = logprobs.from_logits(torch.tensor([1e4, 0.0, -1e4]), torch.tensor(1))
    assert (logp.item(), entropy.item()) == (-1e4, 0.0)


def test_one_chunk_can_be_differentiated_twice():
    """Hessian of log p for logits = weight (H = 1, hidden 1): p p^T - diag(p)."""
    weight, hidden = torch.tensor([[0.3], [-0.2], [0.9]], dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)

    def function(weight):
        return logprobs.token_logprobs(hidden, weight, torch.tensor([0]))[0].sum()

    p = weight[:, 0].softmax(0)
    actual = torch.autograd.functional.hessian(function, weight)[:, 0, :, 0]  # pyright: ignore
    assert_close(actual, torch.outer(p, p) - torch.diag(p))


def test_no_rows_give_no_results():
    hidden, weight, _, tokens = problem()
    logp, entropy = logprobs.token_logprobs(hidden[:0], weight, tokens[:0], chunk=2)
    (logp.sum() + entropy.sum()).backward()
    assert (logp.shape, entropy.shape) == ((0,), (0,))
    assert_close(weight.grad, torch.zeros_like(weight))


def test_misfits_are_refused_by_name():
    hidden, weight, bias, tokens = (x.detach() for x in problem())
    cases = [
        (dict(hidden=hidden[:, :2]), r"hidden \[7, 2\], weight \[5, 3\]"),
        (dict(tokens=tokens[:3]), r"tokens \[3\]"),
        (dict(weight=weight[0]), "2 dimension"),
        (dict(bias=bias[:2]), r"bias \[2\]"),
        (dict(weight=weight.float()), r"torch\.float32"),
        (dict(temperature=0.0), r"temperature=0\.0"),
        (dict(chunk=0), "chunk=0"),
        (dict(softcap=-1.0), r"softcap=-1\.0"),
    ]
    for change, message in cases:
        with pytest.raises(ValueError, match=message):
            logprobs.token_logprobs(**(dict(hidden=hidden, weight=weight, tokens=tokens, bias=bias) | change))
    with pytest.raises(ValueError, match="tokens"):
        logprobs.from_logits(torch.zeros(2, 3, 4), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="temperature"):
        logprobs.from_logits(torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64), temperature=-1.0)
