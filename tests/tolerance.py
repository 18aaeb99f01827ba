"""Tolerances for floating-point results, derived from dtype, magnitude and number of operations.

CPUs sum in different orders, depending on vector width, threads and libraries (ATen, oneDNN, MKL), so the same float32
computation ends in different last digits. Tests therefore compute the expected value in float64 and bound the error by
what rounding can do on any CPU, not by what one CPU showed.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

DEVIATIONS = 6  # standard deviations; a rounded number exceeds them with probability 3e-8
AS_GOOD_AS = 4  # times the largest error of a plain computation, which sums in another order


def rounding(dtype: torch.dtype, magnitude: float | Tensor, operations: int = 1) -> float:
    """Return a bound on the absolute error that rounding causes in a result of `operations` operations.

    Each operation has a relative error of at most u = eps / 2. In a sum of n terms they add up to at most n u times
    `magnitude`, the sum of the terms' absolute values (Higham 2002, section 4.2). As the single errors are close to
    independent with mean zero, the total exceeds c sqrt(n) u `magnitude` only with probability 2 exp(-c^2 / 2) (Higham
    and Mary 2019, theorem 2.4). This function returns the smaller bound, with c = DEVIATIONS.

    Choose the arguments as follows:
    - product, quotient, another term: one more operation; exp, log: two, as libraries may miss the nearest number;
    - division by a temperature: `magnitude` is that of the quotient;
    - a differentiable function of the sum: multiply `magnitude` by its derivative;
    - log-softmax: twice the magnitude of the logits, as it subtracts two numbers with the logits' error;
    - bfloat16 tensors multiplied with float32 sums: count only the times a tensor is stored in bfloat16.
    """
    unit_roundoffs = min(operations, DEVIATIONS * math.sqrt(operations))
    return unit_roundoffs * torch.finfo(dtype).eps / 2 * float(magnitude)


def allowance(plain: Tensor, exact: Tensor) -> float:
    """Return the largest error, against `exact` (float64), of a result that is as accurate as `plain`.

    `plain` is a simple computation of the same numbers in the dtype under test. Use this where the amplification of
    rounding errors depends on the model (sharp attention, say): it is the same for both. The bound is AS_GOOD_AS times
    the largest error of `plain`, plus the rounding of a float32 result, as `plain` may have no error by chance.
    """
    usual = (plain.double() - exact).abs().max()
    return AS_GOOD_AS * float(usual) + rounding(torch.float32, exact.abs().max())


def in_float64(model: Any) -> Any:
    """Return a copy of a transformers model that computes in float64 throughout.

    `model.double()` is not enough: transformers' RMSNorm rounds its input to float32.
    """
    exact = copy.deepcopy(model).double()
    for module in list(exact.modules()):
        for name, child in module.named_children():
            if type(child).__name__.endswith("RMSNorm"):
                norm = nn.RMSNorm(child.weight.shape[0], child.variance_epsilon, dtype=torch.float64)  # pyright: ignore
                norm.weight = child.weight  # pyright: ignore[reportAttributeAccessIssue]
                setattr(module, name, norm)
    return exact
