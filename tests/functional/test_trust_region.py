import math

import pytest
import torch
from torch.testing import assert_close

from rlhf_pg.functional.trust_region import (
    NegativeCurvature,
    conjugate_gradient,
    finite_difference,
    line_search,
    step_length,
)

MATRIX = torch.tensor([[4.0, 1.0, 0.0], [1.0, 3.0, 0.0], [0.0, 0.0, 2.0]], dtype=torch.float64)


class Product:
    def __init__(self, matrix):
        self.matrix, self.calls = matrix, 0

    def __call__(self, vector):
        self.calls += 1
        return self.matrix @ vector


def test_a_known_system_is_solved_in_as_many_products_as_unknowns():
    """4x + y = 1, x + 3y = 2, 2z = 3: x = 1/11, y = 7/11, z = 3/2."""
    product = Product(MATRIX)
    x = conjugate_gradient(product, torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64), iterations=10, tolerance=1e-12)
    assert_close(x, torch.tensor([1 / 11, 7 / 11, 3 / 2], dtype=torch.float64), rtol=0, atol=1e-12)
    assert product.calls == 3


def test_one_iteration_is_the_steepest_descent_step_by_hand():
    """From 0: x = b (b.b) / (b.Ab); b = (1, 1, 0): b.b = 2, Ab = (5, 4, 0), so x = 2/9 b."""
    product = Product(MATRIX)
    x = conjugate_gradient(product, torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64), iterations=1, tolerance=0.0)
    assert_close(x, torch.tensor([2 / 9, 2 / 9, 0], dtype=torch.float64))
    assert product.calls == 1


def test_two_iterations_by_hand():
    """The textbook pair: (4 1; 1 3) x = (1, 2) is solved exactly by the second step."""
    b = torch.tensor([1.0, 2.0], dtype=torch.float64)
    x = conjugate_gradient(Product(MATRIX[:2, :2]), b, iterations=2, tolerance=0.0)
    assert_close(x, torch.tensor([1 / 11, 7 / 11], dtype=torch.float64), rtol=0, atol=1e-12)


def test_it_stops_when_the_residual_is_small_relative_to_b():
    """Condition number 1e4 in 50 dimensions. The bound holds at any scale of b; a looser one costs fewer products.

    Scales are powers of two: they change no digit, so that not even the rounding of the steps differs.
    """
    random = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(50, 50, dtype=torch.float64, generator=random))[0]
    matrix = basis @ torch.diag(torch.logspace(0, 4, 50, dtype=torch.float64)) @ basis.T
    b = torch.randn(50, dtype=torch.float64, generator=random)
    calls = []
    for scale in (2.0**-27, 1.0, 2.0**27):
        for tolerance in (1e-2, 1e-8):
            product = Product(matrix)
            x = conjugate_gradient(product, scale * b, iterations=500, tolerance=tolerance)
            assert (scale * b - matrix @ x).norm() <= 1.01 * tolerance * scale * b.norm()
            calls.append(product.calls)
    assert calls[0] < calls[1] < 500
    assert calls[0] == calls[2] == calls[4]
    product = Product(matrix)
    conjugate_gradient(product, b)
    assert product.calls == 10  # by default


def test_zero_needs_no_product():
    product = Product(MATRIX)
    assert torch.equal(conjugate_gradient(product, torch.zeros(3, dtype=torch.float64)), torch.zeros(3).double())
    assert product.calls == 0


def test_inputs_are_left_alone():
    b = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    conjugate_gradient(Product(MATRIX), b)
    assert b.tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("matrix", [-torch.eye(2), torch.zeros(2, 2), torch.full((2, 2), torch.nan)])
def test_a_product_without_positive_curvature_asks_for_damping(matrix):
    for iterations in (1, 10):
        with pytest.raises(NegativeCurvature, match="damping"):
            conjugate_gradient(Product(matrix), torch.ones(2), iterations)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="1 dimension"):
        conjugate_gradient(Product(MATRIX), torch.ones(3, 1).double())
    with pytest.raises(ValueError, match="shapes differ"):
        conjugate_gradient(lambda v: v[:2], torch.ones(3))


def test_shapes_that_do_not_fit_are_no_negative_curvature():
    """Only a curvature may be answered by refusing the step."""
    with pytest.raises(ValueError, match="shapes differ") as error:
        conjugate_gradient(lambda v: v[:2], torch.ones(3))
    assert not isinstance(error.value, NegativeCurvature)


def test_step_length_by_hand():
    """x = (1, 2), F x = (3, 0.5): x.Fx = 4; max_kl 0.5: sqrt(2 * 0.5 / 4) = 0.5, and 0.5^2 * 4 / 2 = 0.5."""
    x, product_x = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 0.5])
    assert step_length(x, product_x, max_kl=0.5) == pytest.approx(0.5)
    assert step_length(x, product_x, max_kl=0.02) == pytest.approx(0.1)


@pytest.mark.parametrize("product_x", [[0.0, 0.0], [-1.0, 0.0], [math.nan, 0.0]])
def test_step_length_without_positive_curvature_is_refused(product_x):
    with pytest.raises(NegativeCurvature, match="damping"):
        step_length(torch.ones(2), torch.tensor(product_x), 0.1)


def test_step_length_checks_shapes():
    with pytest.raises(ValueError, match="1 dimension"):
        step_length(torch.ones(2, 1), torch.ones(2, 1), 0.1)
    with pytest.raises(ValueError, match="shapes differ"):
        step_length(torch.ones(2), torch.ones(3), 0.1)


def test_finite_difference_is_exact_for_a_quadratic_function_of_any_length_of_vector():
    """Gradient of x.Ax/2 around any point: A (x0 + offset)."""
    here, v = torch.tensor([5.0, -3.0, 2.0]).double(), torch.tensor([1.0, 2.0, -1.0]).double()
    for scale in (1e-6, 1.0, -1e6):
        actual = finite_difference(lambda offset: MATRIX @ (here + offset), scale * v)
        assert_close(actual / scale, torch.tensor([6.0, 7.0, -2.0]).double(), rtol=0, atol=1e-11)


def test_finite_difference_moves_by_the_step_in_both_directions():
    """|v| = 5, step 0.1: gradients are asked for at +-0.1 v / 5. For x^3, f'' at 0 is seen as 0."""
    asked = []

    def gradient(offset):
        asked.append(offset)
        return offset.square()

    actual = finite_difference(gradient, torch.tensor([3.0, 4.0]).double(), step=0.1)
    assert_close(torch.stack(asked), torch.tensor([[0.06, 0.08], [-0.06, -0.08]]).double())
    assert actual.abs().max() < 1e-15


def test_the_error_of_a_finite_difference_falls_with_the_square_of_the_step():
    """exp at 0: (exp(h) - exp(-h)) / 2h = 1 + h^2 / 6 + ..."""
    one = torch.ones(1, dtype=torch.float64)
    errors = [finite_difference(torch.exp, one, step=h).item() - 1 for h in (0.1, 0.01)]
    assert errors == pytest.approx([0.01 / 6, 0.0001 / 6], rel=1e-3)
    assert finite_difference(torch.exp, one).item() - 1 == pytest.approx(1e-4 / 6, rel=1e-3)  # the default step


def test_the_finite_difference_along_zero_is_zero_and_costs_nothing():
    def never(offset):
        raise AssertionError("called")

    assert finite_difference(never, torch.zeros(3)).tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="1 dimension"):
        finite_difference(never, torch.zeros(3, 1))


def searched(kl, improvement, **options):
    tried = []

    def measure(scale):
        tried.append(scale)
        return kl(scale), improvement(scale)

    return line_search(measure, **options), tried


def test_line_search_takes_the_first_step_that_holds():
    """KL = scale^2 within 0.1: 1 and 1/2 are too far, 1/4 is not."""
    actual, tried = searched(lambda s: s * s, lambda s: 3 * s, max_kl=0.1)
    assert actual == (0.25, 0.0625, 0.75, 3)
    assert tried == [1.0, 0.5, 0.25]


def test_line_search_takes_the_whole_step_at_the_very_bound():
    assert searched(lambda s: 0.1, lambda s: 1e-9, max_kl=0.1)[0] == (1.0, 0.1, 1e-9, 1)


def test_line_search_shortens_by_the_factor_asked_for():
    actual, tried = searched(lambda s: 0.0, lambda s: 1.0 if s < 0.7 else -1.0, max_kl=0.1, backtrack=0.8)
    assert tried == pytest.approx([1.0, 0.8, 0.64])
    assert actual == pytest.approx((0.64, 0.0, 1.0, 3))


@pytest.mark.parametrize("improvement", [0.0, -1e-12, -1.0, math.nan, math.inf])
def test_line_search_never_takes_a_step_that_does_not_raise_the_surrogate(improvement):
    actual, tried = searched(lambda s: 0.0, lambda s: improvement, max_kl=0.1, steps=4)
    assert actual == (0.0, 0.0, 0.0, 4)
    assert tried == [1.0, 0.5, 0.25, 0.125]


@pytest.mark.parametrize("kl", [0.1 + 1e-12, 1.0, math.nan, math.inf])
def test_line_search_never_takes_a_step_outside_the_region(kl):
    assert searched(lambda s: kl, lambda s: 1.0, max_kl=0.1)[0] == (0.0, 0.0, 0.0, 10)


def test_whatever_the_measurements_an_accepted_step_is_the_first_that_holds():
    """Random KL and improvement at each scale, some NaN, against a plain filter."""
    random = torch.Generator().manual_seed(0)
    for _ in range(300):
        kls, gains = torch.randn(2, 6, generator=random).tolist()
        kls[2] = math.nan
        measured = iter(zip(kls, gains, strict=True))
        scale, kl, gain, tried = line_search(lambda s, m=measured: next(m), max_kl=0.0, steps=6)
        holds = [i for i in range(6) if kls[i] <= 0.0 and gains[i] > 0]
        expected = (0.5 ** holds[0], kls[holds[0]], gains[holds[0]], holds[0] + 1) if holds else (0.0, 0.0, 0.0, 6)
        assert (scale, kl, gain, tried) == expected
