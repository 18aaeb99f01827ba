"""How noisy a gradient estimator is, from the gradients of many groups of samples: numbers only, no model.

    g_i           gradient of group i, i = 1 .. n: independent draws of one random vector
    trace         sum_i |g_i - mean|^2 / (n - 1)                 unbiased for tr Cov(g)
    signal        sum_{i != j} g_i . g_j / (n (n - 1))           unbiased for |E g|^2; equals |mean|^2 - trace / n
    variance      trace / m                                      of a step's gradient, the mean of m groups
    SNR           signal / variance

All of them are functions of the inner products g_i . g_j. Intervals: bootstrap over groups, with the same resamples for
every estimator, so that ratios of two estimators on the same rollouts are paired.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

RESAMPLES = 1000
CHUNK = 2**14  # columns that are float64 at a time
Interval = tuple[float, float]  # 95 %


class Sketch:
    """A fixed random linear map R^n -> R^d that keeps inner products in expectation: E[Sx . Sy] = x . y.

    Count sketch (Charikar et al. 2002): coordinate i is added with a random sign to one of d places. Here the places of
    d neighbours are a random rotation of 0 .. d-1, so that neighbours never meet and any two others do with chance 1/d:
    Var[Sx . Sy] <= ((x . y)^2 + |x|^2 |y|^2) / d. With d >= n it is the identity. The trace of sketched gradients is
    that of sketched deviations from the mean: unbiased, its standard error sqrt(2 / d) of itself at the most.
    """

    def __init__(self, length: int, width: int, seed: int = 0, device: torch.device | str = "cpu"):
        self.length, self.width = length, min(length, width)
        self.exact = self.width == length
        if not self.exact:
            random = torch.Generator().manual_seed(seed)
            self._signs = torch.randint(2, (length,), generator=random, dtype=torch.int8).mul_(2).sub_(1).to(device)
            blocks = -(-length // self.width)
            self._turns = torch.randint(self.width, (blocks,), generator=random).tolist()

    def __call__(self, x: Tensor) -> Tensor:
        """Return the sketch [d] of x [n], in x's dtype."""
        if self.exact:
            return x
        out = x.new_zeros(self.width)
        for block, turn in enumerate(self._turns):
            part = slice(block * self.width, (block + 1) * self.width)
            signed = x[part] * self._signs[part]
            first = min(len(signed), self.width - turn)  # so many stay before the end; the rest begin anew
            out[turn : turn + first] += signed[:first]
            out[: len(signed) - first] += signed[first:]
        return out


@dataclass(frozen=True)
class Summary:
    """The statistics of one estimator."""

    trace: float  # of the covariance of one group's gradient
    variance: float  # of a step's gradient: trace / groups per step
    variance_interval: Interval
    signal: float  # |E g|^2; noise may leave it below 0
    snr: float | None  # None: the gradient is 0 in every group
    snr_interval: Interval | None
    cosines: list[float]  # of each step with the large-sample gradient of the other groups; [] = too few groups


class Bootstrap:
    """Trace and signal of each estimator under the same resamples of the groups."""

    def __init__(self, gradients: Tensor, resamples: int = RESAMPLES, seed: int = 0):
        """`gradients` [E, n, d]: of the same n groups by each estimator, or their sketches."""
        count = gradients.shape[1]
        random = torch.Generator().manual_seed(seed)
        groups = torch.randint(count, (resamples, count), generator=random)
        weights = torch.zeros(resamples, count, dtype=torch.float64)
        weights.scatter_add_(1, groups, torch.ones_like(groups, dtype=torch.float64))
        grams = [gram(of_estimator) for of_estimator in gradients]
        once = torch.ones(1, count, dtype=torch.float64)
        self.point = [tuple(float(x) for x in trace_and_signal(g, once)) for g in grams]
        grow = count / (count - 1)  # a resample holds fewer distinct groups: both are too small by this factor
        self.resampled = [tuple(grow * x for x in trace_and_signal(g, weights)) for g in grams]

    def ratio(self, estimator: int, other: int) -> tuple[float, Interval] | None:
        """Return the trace of one over that of another, paired; None where the other's is 0."""
        if self.point[other][0] <= 0:
            return None
        return self.point[estimator][0] / self.point[other][0], interval(
            self.resampled[estimator][0] / self.resampled[other][0]
        )


def gram(gradients: Tensor) -> Tensor:
    """Return the inner products [n, n] of gradients [n, d], float64 on the CPU."""
    count = len(gradients)
    products = torch.zeros(count, count, dtype=torch.float64, device=gradients.device)
    for piece in gradients.split(CHUNK, dim=1):
        wide = piece.double()
        products.addmm_(wide, wide.T)
    return products.cpu()


def trace_and_signal(products: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return trace and signal [R] of inner products [n, n], group i counted weights[r, i] times in resample r.

    Pairs are those of different groups, also when a resample holds a group twice.
    """
    count = weights.shape[1]
    squares = products.diagonal()  # [n]: |g_i|^2
    square_of_sum = ((weights @ products) * weights).sum(dim=1)  # [R]: |sum_i w_i g_i|^2
    pairs = square_of_sum - weights.square() @ squares
    return (weights @ squares - square_of_sum / count) / (count - 1), pairs / (count * (count - 1))


def summaries(gradients: Tensor, per_step: int, reference: int, bootstrap: Bootstrap) -> list[Summary]:
    """Summarise each estimator of `gradients` [E, n, d]; cosines are with the large-sample gradient of number
    `reference`."""
    target = step_sums(gradients[reference], per_step)
    rest = gradients[reference].sum(dim=0, dtype=torch.float64) - target  # [S, d]: all groups of other steps
    enough = gradients.shape[1] > per_step
    by_estimator = []
    for estimator, (trace, signal) in enumerate(bootstrap.point):
        traces, signals = bootstrap.resampled[estimator]
        cosines = cosine(step_sums(gradients[estimator], per_step), rest) if enough else []
        low, high = interval(traces)
        by_estimator.append(
            Summary(
                trace=trace,
                variance=trace / per_step,
                variance_interval=(low / per_step, high / per_step),
                signal=signal,
                snr=per_step * signal / trace if trace > 0 else None,
                snr_interval=interval(per_step * signals / traces) if trace > 0 else None,
                cosines=cosines,
            )
        )
    return by_estimator


def step_sums(gradients: Tensor, per_step: int) -> Tensor:
    """Sum every `per_step` neighbouring gradients, [n, d] -> [S, d] float64; an unfinished step is left out."""
    steps = len(gradients) // per_step
    return gradients[: steps * per_step].view(steps, per_step, gradients.shape[1]).sum(dim=1, dtype=torch.float64)


def cosine(a: Tensor, b: Tensor) -> list[float]:
    """Return the cosine of each row of a [S, d] with that of b; rows of length 0 are left out."""
    lengths = a.norm(dim=1) * b.norm(dim=1)
    return ((a * b).sum(dim=1) / lengths)[lengths > 0].tolist()


def interval(values: Tensor) -> Interval:
    """Return the middle 95 % of resampled values [R]."""
    low, high = torch.quantile(values[values.isfinite()], torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return low, high


def coinciding(gradients: Tensor, tolerance: float = 1e-6) -> list[tuple[int, int, float]]:
    """Return the pairs of estimators, of [E, n, d], that agree in every group: (first, second, |difference| / |g|)."""
    lengths = [float(x.norm()) for x in gradients]
    pairs = []
    for a, b in combinations(range(len(gradients)), 2):
        longest = max(lengths[a], lengths[b])
        if longest > 0 and (difference := float((gradients[a] - gradients[b]).norm()) / longest) <= tolerance:
            pairs.append((a, b, difference))
    return pairs
