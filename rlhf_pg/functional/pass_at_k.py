"""pass@k: the chance that at least one of k samples of a problem is right, and how sure a test set makes it."""

from collections.abc import Sequence

import torch
from torch import Tensor

Counts = int | Sequence[int] | Tensor


def pass_at_k(n: Counts, c: Counts, k: int) -> Tensor:
    """Estimate pass@k = 1 - C(n - c, k) / C(n, k), unbiased, from n samples of which c are right.

    Chen et al. 2021 (arXiv:2107.03374, equation 1). n and c are counts of one shape (or one number for all problems);
    returns float64 of that shape, one value per problem. Computed as 1 - prod_{i<k} (n - c - i) / (n - i), which
    neither overflows nor rounds 0 or 1 away. ValueError unless 1 <= k <= n and 0 <= c <= n.
    """
    samples, right = torch.broadcast_tensors(torch.as_tensor(n), torch.as_tensor(c))
    if k < 1 or bool((samples < k).any()):
        raise ValueError(f"k={k}: pass@k needs 1 <= k <= n, the fewest samples of a problem are {int(samples.min())}")
    if bool(((right < 0) | (right > samples)).any()):
        raise ValueError("c must be between 0 and n: a problem cannot have more right samples than samples")
    draw = torch.arange(k, device=samples.device)  # [k]
    wrong_left = (samples - right)[..., None] - draw  # [..., k]; passes 0 if k draws exhaust the wrong ones
    return 1 - (wrong_left.double() / (samples[..., None] - draw).double()).prod(dim=-1)


def bootstrap_interval(
    values: Sequence[float] | Tensor, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Compute the percentile bootstrap interval (low, high) of the mean of `values` [N], one per problem (Efron 1979).

    Resamples problems with replacement; the same `seed` gives the same interval. With one problem the interval is a
    point. ValueError if there is no value, or confidence is not inside (0, 1), or resamples is not positive.
    """
    x = torch.as_tensor(values, dtype=torch.float64).cpu()
    if x.dim() != 1 or len(x) == 0:
        raise ValueError(f"values has shape {list(x.shape)}: give one number per problem, at least one")
    if not 0 < confidence < 1 or resamples < 1:
        raise ValueError(f"confidence={confidence}, resamples={resamples}: need 0 < confidence < 1 and resamples >= 1")
    random = torch.Generator().manual_seed(seed)
    draws = (torch.randint(len(x), (len(x),), generator=random) for _ in range(resamples))
    means = torch.stack([x[draw].mean() for draw in draws])  # [resamples]
    tail = (1 - confidence) / 2
    low, high = means.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high
