"""Linear algebra of the natural gradient step: solve F x = b from v -> F v alone (TRPO, arXiv:1502.05477, appendix
C)."""

from collections.abc import Callable

import torch
from torch import Tensor

from rlhf_pg.functional import shapes


def conjugate_gradient(
    product: Callable[[Tensor], Tensor], b: Tensor, iterations: int = 10, tolerance: float = 1e-10
) -> Tensor:
    """Solve product(x) = b for a symmetric positive definite product: b [n] -> x [n] (Hestenes and Stiefel 1952).

    Starts at 0; stops after `iterations` products, or once |b - product(x)| <= tolerance * |b|. b = 0 gives 0.
    ValueError if b is not a vector, or the product shows a curvature that is not positive (then damp it: F v + damping
    * v).
    """
    shapes.dims(1, b=b)
    x = torch.zeros_like(b)
    residual = b.clone()
    direction = b.clone()
    squared = residual.dot(residual)
    target = tolerance * squared.sqrt()
    for _ in range(iterations):
        if squared.sqrt() <= target:
            break
        image = product(direction)
        shapes.same(b=b, product=image)
        curvature = direction.dot(image)
        if not curvature > 0:
            raise ValueError(f"curvature {float(curvature):.3g} is not positive: add damping to the product")
        step = squared / curvature
        x += step * direction
        residual -= step * image
        previous, squared = squared, residual.dot(residual)
        direction = residual + (squared / previous) * direction
    return x
