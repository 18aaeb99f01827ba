import pytest
import torch
from torch.testing import assert_close

from rlhf_pg.functional.trust_region import conjugate_gradient

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
    """Condition number 1e4 in 50 dimensions. The bound holds at any scale of b; a looser one costs fewer products."""
    random = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(50, 50, dtype=torch.float64, generator=random))[0]
    matrix = basis @ torch.diag(torch.logspace(0, 4, 50, dtype=torch.float64)) @ basis.T
    b = torch.randn(50, dtype=torch.float64, generator=random)
    calls = []
    for scale in (1e-8, 1.0, 1e8):
        for tolerance in (1e-2, 1e-8):
            product = Product(matrix)
            x = conjugate_gradient(product, scale * b, iterations=500, tolerance=tolerance)
            assert (scale * b - matrix @ x).norm() <= 1.01 * tolerance * scale * b.norm()
            calls.append(product.calls)
    assert calls[0] < calls[1] < 500
    assert calls[0] == calls[2] == calls[4]


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
    with pytest.raises(ValueError, match="damping"):
        conjugate_gradient(Product(matrix), torch.ones(2))


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="1 dimension"):
        conjugate_gradient(Product(MATRIX), torch.ones(3, 1).double())
    with pytest.raises(ValueError, match="shapes differ"):
        conjugate_gradient(lambda v: v[:2], torch.ones(3))
