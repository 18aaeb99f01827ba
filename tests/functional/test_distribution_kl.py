"""KL of whole distributions from hidden states: value, gradient, memory, and what cancels at new = old."""

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rlhf_pg.functional import logprobs


def problem(rows=7, width=3, vocabulary=5, dtype=torch.float64):
    """New and old hidden [M, H], weight [V, H], bias [V]: the new ones with gradient."""
    random = torch.Generator().manual_seed(0)
    shapes = ((rows, width), (vocabulary, width), (vocabulary,))
    new = [torch.randn(s, generator=random, dtype=dtype).requires_grad_() for s in shapes]
    old = [torch.randn(s, generator=random, dtype=dtype) for s in shapes]
    return new, old


def call(new, old, **options):
    return logprobs.distribution_kl(new[0], new[1], old[0], old[1], bias=new[2], bias_old=old[2], **options)


def slow(new, old, temperature, softcap):
    """Row by row from the definition: sum over v of p_old log(p_old / p), probabilities by exp and division."""

    def probabilities(row, weight, bias):
        logits = (weight * row).sum(dim=1) + bias
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        return (logits / temperature).exp() / (logits / temperature).exp().sum()

    out = []
    for h, h_old in zip(new[0], old[0], strict=True):
        p, p_old = probabilities(h, *new[1:]), probabilities(h_old, *old[1:])
        out.append((p_old * (p_old / p).log()).sum())
    return torch.stack(out)


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", [None, 1, 2, 6, 7, 100])
def test_every_chunk_size_agrees_with_the_slow_loop_in_value_and_gradient(chunk, temperature, softcap):
    new, old = problem()
    weights = torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = slow(new, old, temperature, softcap)
    actual = call(new, old, temperature=temperature, chunk=chunk, softcap=softcap)
    assert_close(actual, expected, rtol=0, atol=1e-12)
    want = torch.autograd.grad((expected * weights).sum(), new)
    for g, w in zip(torch.autograd.grad((actual * weights).sum(), new), want, strict=True):
        assert_close(g, w, rtol=0, atol=1e-12)


def test_by_hand_and_in_which_direction():
    """Old (1/2, 1/2), new (1/4, 3/4): KL(old || new) = log(2 / sqrt(3)) = 0.143841; the other way round 0.130812."""
    one = torch.ones(1, 1, dtype=torch.float64)
    even, odd = torch.zeros(2, 1, dtype=torch.float64), torch.tensor([[1.0], [3.0]], dtype=torch.float64).log()
    assert logprobs.distribution_kl(one, odd, one, even).item() == pytest.approx(0.143841, abs=1e-6)
    assert logprobs.distribution_kl(one, even, one, odd).item() == pytest.approx(0.130812, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("chunk", [2, 100])
def test_value_and_gradient_are_exactly_zero_where_the_policies_agree(dtype, chunk):
    new, _ = problem(rows=50, vocabulary=300, dtype=dtype)
    kl = call(new, [x.detach() for x in new], chunk=chunk)
    assert (kl == 0).all()
    assert all((g == 0).all() for g in torch.autograd.grad(kl.sum(), new))


def test_small_values_keep_their_digits_in_float32():
    """Weights 1e-3 apart, 3,000 tokens: the KL is 1e-5. The sum of p_old (log p_old - log p) would be off by 0.8 %."""
    (hidden, weight, _), _ = problem(rows=40, width=32, vocabulary=3000)
    moved = weight + 1e-3 * torch.randn(weight.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    exact = logprobs.distribution_kl(hidden, moved, hidden, weight)
    h, new, old = (x.detach().float() for x in (hidden, moved, weight))
    actual = logprobs.distribution_kl(h, new, h, old)
    assert exact.mean().item() == pytest.approx(1e-5, rel=0.1)
    assert (actual - exact).abs().mean() < 0.004 * exact.mean()


def test_extreme_logits_give_no_nan():
    hidden = torch.ones(1, 1).requires_grad_()
    old, new = torch.tensor([[1e4], [0.0], [-1e4]]), torch.tensor([[0.0], [1e4], [-1e4]])
    kl = logprobs.distribution_kl(hidden, new, torch.ones(1, 1), old)
    kl.sum().backward()
    assert kl.item() == 1e4
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()


@pytest.mark.parametrize("chunk", [2, 100])
def test_nothing_old_gets_a_gradient(chunk):
    new, old = problem()
    old = [x.requires_grad_() for x in old]
    call(new, old, chunk=chunk).sum().backward()
    assert [x.grad for x in old] == [None, None, None]
    assert all(x.grad is not None and x.grad.any() for x in new)


@pytest.mark.parametrize("chunk", [2, 100])
def test_gradcheck(chunk):
    new, old = problem(rows=5, vocabulary=4)

    def function(*new):
        return call(new, old, temperature=0.8, chunk=chunk, softcap=1.5)

    assert torch.autograd.gradcheck(function, new)


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
    new, old = problem(rows=60, width=4, vocabulary=50)

    def largest(chunk):
        with Largest() as seen:
            call(new, old, temperature=0.9, chunk=chunk, softcap=softcap).sum().backward()
        return seen.elements

    assert largest(8) == 400
    assert largest(60) == 3000  # the measurement does see whole logits where they are made


def test_default_chunk_bounds_the_logits_alive(monkeypatch):
    new, old = problem(rows=30, width=1, vocabulary=50)
    for limit, rows in ((580, 11), (10, 1)):  # the rows that fit, at least one
        monkeypatch.setattr(logprobs, "CHUNK_LOGITS", limit)
        with Largest() as seen:
            call(new, old).sum().backward()
        assert seen.elements == rows * 50


def test_what_is_kept_for_the_backward_pass_is_no_logits():
    new, old = problem(rows=60, width=4, vocabulary=50)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (saved.append(x.numel()), x)[1], lambda x: x):
        kl = call(new, old, chunk=8)
    assert max([*saved, 0]) <= 240  # hidden; a chunk of logits would be 400
    assert kl.requires_grad


def test_the_softmax_is_float32_under_bfloat16_and_autocast():
    new, old = problem(rows=6, width=64, dtype=torch.bfloat16)
    assert call(new, old, chunk=2).dtype == torch.float32
    wide = [x.detach().float() for x in new], [x.float() for x in old]
    for chunk in (2, 6):
        expected = call(*wide, chunk=chunk)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(call(*wide, chunk=chunk), expected)


def test_no_rows_give_no_results():
    new, old = problem()
    assert call([new[0][:0], *new[1:]], [old[0][:0], *old[1:]], chunk=2).shape == (0,)


def test_misfits_are_refused_by_name():
    new, old = problem()
    for change_new, change_old, message in (
        ([new[0][:3], *new[1:]], old, r"hidden \[3, 3\], hidden_old \[7, 3\]"),
        (new, [old[0], old[1][:4], old[2]], r"weight \[5, 3\], weight_old \[4, 3\]"),
        (new, [old[0], old[1], old[2][:4]], r"bias \[4\]"),
        (new, [old[0].float(), old[1], old[2]], r"torch\.float32"),
        ([new[0][:, :2], *new[1:]], [old[0][:, :2], *old[1:]], r"hidden \[7, 2\], weight \[5, 3\]"),
    ):
        with pytest.raises(ValueError, match=message):
            call(change_new, change_old)
    for options, message in (
        (dict(temperature=0.0), "temperature"),
        (dict(chunk=0), "chunk=0"),
        (dict(softcap=-1.0), "softcap"),
    ):
        with pytest.raises(ValueError, match=message):
            call(new, old, **options)
