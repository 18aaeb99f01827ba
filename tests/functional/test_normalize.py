import math

import pytest
import torch
from torch.testing import assert_close

from rlhf_pg.functional import normalize

# rows of 2, 1 and 0 sampled tokens; a hole in the first
MASK = torch.tensor([[True, False, True], [True, False, False], [False, False, False]])
LOSS = torch.tensor([[1.0, 100.0, 3.0], [10.0, 100.0, 100.0], [100.0, 100.0, 100.0]], dtype=torch.float64)
NAN = torch.where(MASK, LOSS, torch.nan)
HOWS = [("token", None), ("sequence", None), ("constant", 4)]


@pytest.mark.parametrize(
    ("how", "length", "counted", "value"),
    [("token", None, 3, 14 / 3), ("sequence", None, 2, (2 + 10) / 2), ("constant", 4, 8, 14 / 8)],
)
def test_by_hand(how, length, counted, value):
    actual = normalize.count(MASK, how, length)
    assert (actual.dtype, actual.shape, actual.item()) == (torch.float64, (), counted)
    assert normalize.total(LOSS, MASK, how, constant_length=length).item() == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(
    ("how", "length", "weights"),
    [
        ("token", None, [[1 / 3, 0, 1 / 3], [1 / 3, 0, 0], [0, 0, 0]]),
        ("sequence", None, [[1 / 4, 0, 1 / 4], [1 / 2, 0, 0], [0, 0, 0]]),
        ("constant", 4, [[1 / 8, 0, 1 / 8], [1 / 8, 0, 0], [0, 0, 0]]),
    ],
)
def test_each_tokens_weight_by_hand_and_nan_in_padding_reaches_nothing(how, length, weights):
    loss = NAN.clone().requires_grad_()
    total = normalize.total(loss, MASK, how, constant_length=length)
    total.backward()
    assert_close(loss.grad, torch.tensor(weights, dtype=torch.float64))
    assert total.isfinite()


@pytest.mark.parametrize(("how", "length"), HOWS)
@pytest.mark.parametrize("split", [[7], [1] * 7, [3, 4], [2, 0, 5]])
def test_micro_batches_with_the_steps_count_add_up_to_the_whole(how, length, split):
    """Value and gradient, for any split of the rows, whatever each part's own number of tokens is."""
    random = torch.Generator().manual_seed(0)
    mask = torch.rand(7, 5, generator=random) < 0.4
    mask[2] = False  # a row, and a micro-batch, with nothing in it
    values = torch.randn(7, 5, dtype=torch.float64, generator=random)
    unsplit, parts = values.clone().requires_grad_(), values.clone().requires_grad_()
    expected = normalize.total(unsplit, mask, how, constant_length=length)
    expected.backward()
    step = torch.stack([normalize.count(m, how, length) for m in mask.split(split)]).sum()
    assert step == normalize.count(mask, how, length)
    pairs = zip(parts.split(split), mask.split(split), strict=True)
    totals = [normalize.total(loss, m, how, step, length) for loss, m in pairs]
    torch.stack(totals).sum().backward()
    assert_close(torch.stack(totals).sum(), expected, rtol=0, atol=1e-12)
    assert_close(parts.grad, unsplit.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("how", "length"), HOWS)
def test_more_padding_changes_nothing(how, length):
    wider = torch.nn.functional.pad(NAN, (0, 4), value=float("nan"))
    wider_mask = torch.nn.functional.pad(MASK, (0, 4), value=False)
    expected = normalize.total(LOSS, MASK, how, constant_length=length)
    assert_close(normalize.total(wider, wider_mask, how, constant_length=length), expected)


@pytest.mark.parametrize(("how", "length"), HOWS)
def test_an_empty_mask_gives_zero_with_a_count_and_an_error_without(how, length):
    empty = torch.zeros_like(MASK)
    assert normalize.count(empty, how, length).item() == 0
    loss = NAN.clone().requires_grad_()
    total = normalize.total(loss, empty, how, count=5, constant_length=length)
    total.backward()
    assert total.item() == 0
    assert_close(loss.grad, torch.zeros_like(loss))
    for count in (None, 0, torch.tensor(0.0)):
        with pytest.raises(ValueError, match="no sampled token"):
            normalize.total(loss, empty, how, count=count, constant_length=length)


def test_the_mean_over_tokens_ignores_what_is_masked():
    assert normalize.total(NAN, MASK).item() == pytest.approx(14 / 3)
    with pytest.raises(ValueError, match="no sampled token"):
        normalize.total(NAN, torch.zeros_like(MASK))


def test_dtype_is_kept_and_bfloat16_is_rounded_only_at_the_end():
    """514 / 257 = 2; in bfloat16 the sum would round to 512 and the count to 256."""
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        ones = torch.ones(2, 257, dtype=dtype)
        total = normalize.total(ones, torch.ones(2, 257, dtype=torch.bool), count=257)
        assert (total.dtype, total.item()) == (dtype, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(how="mean"), "'mean'"),
        (dict(how="constant"), "constant_length=None"),
        (dict(how="token", constant_length=3), "constant_length=3"),
        (dict(how="constant", constant_length=0), "positive"),
    ],
)
def test_contradictory_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        normalize.total(LOSS, MASK, **arguments)


def test_a_constant_length_of_one_is_a_length():
    assert normalize.count(MASK, "constant", 1).item() == 2


def test_shape_and_dtype_of_the_mask_are_checked():
    with pytest.raises(ValueError, match=r"loss \[3, 3\], mask \[3, 2\]"):
        normalize.total(LOSS, MASK[:, :2])
    with pytest.raises(ValueError, match=r"torch\.bool"):
        normalize.total(LOSS, MASK.double())
    with pytest.raises(ValueError, match="2 dimension"):
        normalize.count(MASK[0], "token")


def test_moments_by_hand():
    actual = normalize.moments(NAN, MASK)
    assert (actual.dtype, actual.tolist()) == (torch.float64, [3, 14, 110])


def test_standardise_by_hand():
    """1, 3, 10: mean 14/3, squared deviations 134/3, variance over n - 1 = 2."""
    std = (134 / 6) ** 0.5
    expected = torch.tensor([[1 - 14 / 3, 0, 3 - 14 / 3], [10 - 14 / 3, 0, 0], [0, 0, 0]], dtype=torch.float64)
    assert_close(normalize.standardise(NAN, MASK), expected / std, rtol=0, atol=1e-8)
    assert_close(normalize.standardise(NAN, MASK, eps=1.0), expected / (std + 1), rtol=0, atol=1e-12)


def test_ranks_that_add_their_moments_standardise_as_one():
    random = torch.Generator().manual_seed(0)
    x = torch.randn(6, 4, dtype=torch.float64, generator=random) * 3 + 7
    mask = torch.rand(6, 4, generator=random) < 0.6
    x = torch.where(mask, x, torch.nan)
    values = x[mask].tolist()
    mean = sum(values) / len(values)
    std = (sum((v - mean) ** 2 for v in values) / (len(values) - 1)) ** 0.5
    parts = [slice(0, 1), slice(1, 4), slice(4, 6)]
    moments = torch.stack([normalize.moments(x[part], mask[part]) for part in parts]).sum(dim=0)
    for part in parts:
        expected = torch.where(mask[part], (x[part] - mean) / (std + 1e-8), 0)
        assert_close(normalize.standardise(x[part], mask[part], moments), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, -0.7, 1e-30, 1e30, 12345.678])
@pytest.mark.parametrize("columns", [1, 3, 7, 1000])
def test_equal_values_are_standardised_to_exactly_zero(dtype, value, columns):
    """Though their mean may round to another number, and the noise would be divided by eps. Also over ranks."""
    x, mask = torch.full((3, columns), value, dtype=dtype), torch.ones(3, columns, dtype=torch.bool)
    assert (normalize.standardise(x, mask) == 0).all()
    over_ranks = sum(normalize.moments(x[:rows], mask[:rows]) for rows in (1, 2, 3, 3, 1))
    assert isinstance(over_ranks, torch.Tensor)
    assert (normalize.standardise(x, mask, over_ranks) == 0).all()


def test_small_differences_on_a_large_mean_are_not_taken_for_equal():
    """A million and 1/2 up or down: deviations 1/2 over a std of sqrt(1/2)."""
    x = torch.tensor([[1e6 - 0.5, 1e6 + 0.5]], dtype=torch.float64)
    actual = normalize.standardise(x, torch.ones(1, 2, dtype=torch.bool))
    assert_close(actual, torch.tensor([[-(0.5**0.5), 0.5**0.5]], dtype=torch.float64), rtol=0, atol=1e-3)


def test_the_mean_is_taken_off_in_double_precision():
    """Three float32 values around 2^22, whose spacing is 0.5 there: their mean is no float32 number."""
    x = torch.tensor([[0.0, 0.5, 3.0]]) + 2.0**22
    expected = (torch.tensor([[0.0, 0.5, 3.0]]) - 3.5 / 3) / (31 / 12) ** 0.5
    assert_close(normalize.standardise(x, torch.ones(1, 3, dtype=torch.bool)), expected, rtol=0, atol=0.01)


def test_fewer_than_two_values_are_standardised_to_zero():
    one = torch.tensor([[True, False, False], [False, False, False], [False, False, False]])
    assert (normalize.standardise(NAN, one) == 0).all()
    assert (normalize.standardise(NAN, torch.zeros_like(MASK)) == 0).all()


def test_a_nan_that_was_sampled_is_not_hidden():
    x = torch.tensor([[1.0, torch.nan, 2.0]])
    assert normalize.standardise(x, torch.ones(1, 3, dtype=torch.bool)).isnan().all()


def test_no_gradient_flows_into_what_is_standardised_and_its_dtype_is_kept():
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        x = torch.rand(2, 3, dtype=dtype).requires_grad_()
        actual = normalize.standardise(x, torch.ones(2, 3, dtype=torch.bool))
        assert (actual.dtype, actual.requires_grad) == (dtype, False)
    with pytest.raises(ValueError, match=r"x \[3, 3\], mask \[3, 2\]"):
        normalize.standardise(LOSS, MASK[:, :2], torch.ones(3))
    with pytest.raises(ValueError, match=r"x \[3, 3\], mask \[3, 1\]"):
        normalize.moments(LOSS, MASK[:, :1])
    for call in (normalize.moments, lambda x, mask: normalize.standardise(x, mask, torch.ones(3))):
        with pytest.raises(ValueError, match=r"torch\.bool"):
            call(LOSS, MASK.double())


def test_a_single_value_of_zero_is_standardised_to_zero():
    single = torch.tensor([[0.0, math.nan]])  # no spread, and none to be had: n - 1 = 0
    assert normalize.standardise(single, torch.tensor([[True, False]])).tolist() == [[0.0, 0.0]]
