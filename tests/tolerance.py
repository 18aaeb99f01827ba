"""How far rounding may move a result: from dtype, magnitude and number of operations, not from what one CPU showed.

A CPU sums in the order that its vector width, threads and libraries (ATen, oneDNN, MKL) choose, so the same float32
computation has other last digits elsewhere. Expected values are therefore computed in float64, and the difference is
held against a bound that is the same on every CPU.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

DEVIATIONS = 6  # exceeded by one rounded number in 30 million
AS_GOOD_AS = 4  # times the error of a plain computation in the same dtype: another order of sums, no other formula


def rounding(dtype: torch.dtype, magnitude: float | Tensor, operations: int = 1) -> float:
    """Return the absolute error that rounding alone stays below.

    One operation errs by at most u = eps / 2 of its result. A sum (or dot product, or chain) of n terms errs by at most
    n u times `magnitude`, the sum of the terms' absolute values (Higham 2002, section 4.2). Roundings are as good as
    independent and of mean zero, so the error walks at random: it is below c sqrt(n) u times `magnitude` but for a
    probability of 2 exp(-c^2 / 2) (Higham and Mary 2019, theorem 2.4); c is DEVIATIONS. What follows the sum counts as
    more terms where it errs relatively (a product, a division: by a temperature, `magnitude` is that of the quotient)
    and scales `magnitude` by its derivative otherwise (exp by the result; a log-softmax by 2, as it subtracts two
    numbers that err as much as the logits do). Numbers stored in a narrow dtype but summed in a wider one, as bfloat16
    products are, count the stores alone.
    """
    return DEVIATIONS * math.sqrt(operations) * torch.finfo(dtype).eps / 2 * float(magnitude)


def allowance(plain: Tensor, exact: Tensor) -> float:
    """Return how far from `exact` (float64) a result may be that is as good as `plain`, a simple computation of it.

    AS_GOOD_AS times the largest error of `plain`: what rounding comes to depends on how the problem amplifies it, for
    both alike. Rounding of the float32 that holds the result is added: the error of `plain` may happen to be none.
    """
    usual = (plain.double() - exact).abs().max()
    return AS_GOOD_AS * float(usual) + rounding(torch.float32, exact.abs().max())


def in_float64(model: Any) -> Any:
    """Return a copy of a model that computes in float64 throughout: transformers' RMSNorm would round to float32."""
    exact = copy.deepcopy(model).double()
    for module in list(exact.modules()):
        for name, child in module.named_children():
            if type(child).__name__.endswith("RMSNorm"):
                norm = nn.RMSNorm(child.weight.shape[0], child.variance_epsilon, dtype=torch.float64)  # pyright: ignore
                norm.weight = child.weight  # pyright: ignore[reportAttributeAccessIssue]
                setattr(module, name, norm)
    return exact
