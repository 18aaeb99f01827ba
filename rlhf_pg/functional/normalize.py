"""The one place that divides: per-token losses [B, C] to one number.

    token      sum_b sum_t mask l            / number of sampled tokens              (DAPO; REINFORCE per token)
    sequence   sum_b (mean over t in mask)   / number of rows with a sampled token   (GRPO's paper)
    constant   sum_b sum_t mask l            / (those rows * constant_length)        (Dr.GRPO)

The denominator is taken by `count` over the whole optimizer step and all ranks before the first micro-batch, and
handed to `total` for each micro-batch. The totals of any split by rows then add up to the total of the whole, and so
do their gradients. Counts add over disjoint rows: sum the counts of micro-batches or ranks to get the step's.
"""

import torch
from torch import Tensor

from rlhf_pg.functional import shapes

EQUAL = 64 * 2.0**-53  # of the sum of squares: less than that is rounding


def count(mask: Tensor, how: str, constant_length: int | None = None) -> Tensor:
    """Compute the denominator of `mask` [B, C] -> scalar float64, on the mask's device.

    `how`: "token", "sequence" or "constant" (which needs `constant_length`, in tokens, usually the longest completion
    allowed). A mask without a True counts 0. ValueError for another `how`, or a `constant_length` missing, not
    positive or not used.
    """
    shapes.dims(2, mask=mask)
    shapes.boolean(mask=mask)
    if how not in ("token", "sequence", "constant"):
        raise ValueError(f"how={how!r}: must be 'token', 'sequence' or 'constant'")
    if (how == "constant") != (constant_length is not None):
        raise ValueError(f"constant_length={constant_length} with how={how!r}: give it for 'constant', and only then")
    if how == "token":
        return mask.sum(dtype=torch.float64)
    rows = mask.any(dim=1).sum(dtype=torch.float64)
    if constant_length is None:
        return rows
    if constant_length <= 0:
        raise ValueError(f"constant_length={constant_length}: must be positive")
    return rows * constant_length


def total(
    loss: Tensor,
    mask: Tensor,
    how: str = "token",
    count: Tensor | float | None = None,
    constant_length: int | None = None,
) -> Tensor:
    """Reduce `loss` [B, C] over `mask` [B, C] (True = counts) to a scalar of the loss's dtype.

    `count` is the denominator of the whole optimizer step (see the function `count`); without it, this mask's own.
    What `loss` holds where the mask is False, NaN included, reaches neither the value nor the gradient.
    A mask without a True gives 0 when `count` is given. ValueError if there is nothing to divide by, or shapes differ.
    """
    shapes.same(loss=loss, mask=mask)
    of_mask = _count(mask, how, constant_length)
    denominator = torch.as_tensor(of_mask if count is None else count, dtype=torch.float64, device=loss.device)
    if not denominator > 0:
        raise ValueError(f"the count is {float(denominator)}: no sampled token to average over; skip this step")
    wide = torch.promote_types(loss.dtype, torch.float32)
    counted = torch.where(mask, loss, 0).to(wide)  # [B, C]
    if how == "sequence":
        counted = counted / mask.sum(dim=1, keepdim=True).clamp(min=1)  # an empty row is 0 / 1
    return (counted.sum() / denominator.to(wide)).to(loss.dtype)


def moments(x: Tensor, mask: Tensor) -> Tensor:
    """Return count, sum and sum of squares of `x` [B, C] where `mask` [B, C] is True -> float64 [3].

    Moments of disjoint rows add: sum them over micro-batches or ranks. ValueError if the shapes differ.
    """
    shapes.same(x=x, mask=mask)
    shapes.boolean(mask=mask)
    counted = torch.where(mask, x.detach(), 0).double()  # [B, C]
    return torch.stack([mask.sum(dtype=torch.float64), counted.sum(), counted.square().sum()])


def standardise(x: Tensor, mask: Tensor, moments: Tensor | None = None, eps: float = 1e-8) -> Tensor:
    """Compute (x - mean) / (std + eps) where `mask` is True, 0 elsewhere: [B, C], [B, C] -> [B, C], std with n - 1.

    `moments` are those of the whole step, summed over all ranks (see the function `moments`); without them, these rows'
    own. Values that are all equal give exactly 0. So do values whose std is less than 1e-7 of their size, which moments
    cannot tell from rounding. No gradient flows into `x`. ValueError if the shapes differ.
    """
    shapes.same(x=x, mask=mask)
    shapes.boolean(mask=mask)
    count, first, second = (_moments(x, mask) if moments is None else moments).unbind()
    mean = first / count
    squares = second - mean * first  # sum of squared deviations
    if squares <= EQUAL * second:
        return torch.zeros_like(x)
    std = (squares / (count - 1)).sqrt()
    return torch.where(mask, (x.detach().double() - mean) / (std + eps), 0).to(x.dtype)


_moments = moments  # inside `standardise`, `moments` is the argument
_count = count  # inside `total`, `count` is the argument
