"""The natural gradient step from first-order passes: TRPO (Schulman et al. 2015, arXiv:1502.05477, appendix C).

F v        from gradients of KL(old || new), whose Hessian at old is the Fisher matrix F    finite_difference
F x = g    from products F v alone                                                          conjugate_gradient
beta x     as long as the quadratic model of the KL allows, x F x beta^2 / 2 = max_kl       step_length
shorter    until the KL and the surrogate, as measured, agree                               line_search
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rlhf_pg.functional import shapes

# Vectors [n] alive beside the weights, at most: an estimate of memory counts them
PRODUCT_VECTORS = 9  # in a product: b, the step to come; x, residual, direction, last image; two offsets, a gradient
SEARCH_VECTORS = 5  # in line_search: b, x, its image, the step, the share of it that is measured


class NegativeCurvature(ValueError):
    """The Fisher-vector product was not positive definite along some direction."""


def finite_difference(gradient: Callable[[Tensor], Tensor], v: Tensor, step: float = 1e-2) -> Tensor:
    """Compute the Hessian-vector product H v of a function whose gradient is `gradient`: v [n] -> [n].

    `gradient(offset)` is the gradient [n] at the present point + offset [n].
    (gradient(step u) - gradient(-step u)) / (2 step) * |v| with u = v / |v|: a central difference, with an error of
    order step^2, whatever the length of v. v = 0 gives 0 and calls nothing. ValueError if v is not a vector.
    """
    shapes.dims(1, v=v)
    length = v.norm()
    if length == 0:
        return torch.zeros_like(v)
    offset = v * (step / length)
    return (gradient(offset) - gradient(-offset)) * (length / (2 * step))


def conjugate_gradient(
    product: Callable[[Tensor], Tensor], b: Tensor, iterations: int = 10, tolerance: float = 1e-10
) -> Tensor:
    """Solve product(x) = b for a symmetric positive definite product: b [n] -> x [n] (Hestenes and Stiefel 1952).

    Starts at 0; stops after `iterations` products, or once |b - product(x)| <= tolerance * |b|. b = 0 gives 0.
    ValueError if b is not a vector; NegativeCurvature if the product shows a curvature that is not positive (then damp
    it: F v + damping * v).
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
            raise NegativeCurvature(f"curvature {float(curvature):.3g} is not positive: add damping to the product")
        step = squared / curvature
        x += step * direction
        residual -= step * image
        previous, squared = squared, residual.dot(residual)
        direction = residual + (squared / previous) * direction
    return x


def step_length(x: Tensor, product_x: Tensor, max_kl: float) -> float:
    """Return sqrt(2 max_kl / (x . F x)), at which the quadratic model of the KL is max_kl: x [n], F x [n] -> number.

    ValueError if the shapes differ; NegativeCurvature if x . F x is not positive (x = 0 included).
    """
    shapes.dims(1, x=x)
    shapes.same(x=x, product_x=product_x)
    curvature = float(x.dot(product_x))
    if not curvature > 0:
        raise NegativeCurvature(f"curvature {curvature:.3g} along the step is not positive: add damping to the product")
    return math.sqrt(2 * max_kl / curvature)


def line_search(
    measure: Callable[[float], tuple[float, float]], max_kl: float, steps: int = 10, backtrack: float = 0.5
) -> tuple[float, float, float, int]:
    """Shorten a step until it holds: (scale, its KL, its improvement of the surrogate, scales tried).

    `measure(scale)` returns the KL and the improvement of the surrogate at that share of the full step. Scales 1,
    backtrack, backtrack^2, ..., at most `steps` of them, are tried; the first with KL <= max_kl and improvement > 0 is
    taken. If none holds, or all are NaN, scale, KL and improvement are 0: the step is refused.
    """
    for tried in range(1, steps + 1):
        scale = backtrack ** (tried - 1)
        kl, improvement = measure(scale)
        if kl <= max_kl and 0 < improvement < math.inf:
            return scale, kl, improvement, tried
    return 0.0, 0.0, 0.0, steps
