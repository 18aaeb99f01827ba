"""Importance weights of single tokens: samples of one policy, mu, for the update of another, pi.

    w = min(pi(a|s) / mu(a|s), cap)          truncated
    w = r if 1 / cap <= r <= cap else 0      masked, r = pi(a|s) / mu(a|s)

Truncated importance sampling (Ionides 2008); the truncated rho of IMPALA (Espeholt et al. 2018, arXiv:1802.01561,
section 4.1); for a trainer and a separate rollout engine, Yao et al. 2025 ("Your efficient RL framework secretly brings
you off-policy RL training"), who also use cap 2.

A weight on token t's loss corrects the choice of that token. The state it was made in and what followed stay mu's. With
score-function losses and the reward-to-go, the expected gradient of sum_t w_t l_t is

    sum_s d_mu(s) sum_a min(pi(a|s), cap mu(a|s)) Q_mu(s, a) grad log pi(a|s)

where d_mu is how often mu comes to s and Q_mu the expected reward from there on when mu goes on. It is the policy
gradient exactly if completions are one token long and no ratio exceeds the cap; else the error is of first order in
pi - mu, and the cap takes away sum_s d_mu sum_a max(0, pi - cap mu) Q_mu grad log pi. Weights of whole prefixes would
have no bias, and a variance that grows exponentially with their length.
"""

import math

import torch
from torch import Tensor

from rlhf_pg.functional import shapes


def truncated(logp: Tensor, logp_rollout: Tensor, cap: float) -> Tensor:
    """Compute min(exp(logp - logp_rollout), cap), without gradient: [B, C] x 2 -> [B, C], float32 or wider.

    `cap` may be math.inf. ValueError if the shapes differ or the cap is not positive.
    """
    return _log_ratio(logp, logp_rollout, cap).clamp(max=math.log(cap)).exp()


def is_capped(logp: Tensor, logp_rollout: Tensor, cap: float) -> Tensor:
    """Return 1 where `truncated` cuts the ratio, else 0: [B, C] x 2 -> [B, C]. ValueError as there."""
    log_ratio = _log_ratio(logp, logp_rollout, cap)
    return (log_ratio > math.log(cap)).to(log_ratio.dtype)


def masked(logp: Tensor, logp_rollout: Tensor, cap: float) -> Tensor:
    """Compute exp(logp - logp_rollout), 0 unless within [1 / cap, cap], without gradient: [B, C] x 2 -> [B, C].

    A token whose probabilities differ that much is left out, to either side: IcePop (Ling team 2025, arXiv:2510.18855),
    with bounds that are each other's inverse. ValueError as in `truncated`, and for a cap below 1.
    """
    log_ratio = _log_ratio(logp, logp_rollout, cap)
    return torch.where(log_ratio.abs() <= _log_bound(cap), log_ratio, -math.inf).exp()


def is_masked(logp: Tensor, logp_rollout: Tensor, cap: float) -> Tensor:
    """Return 1 where `masked` leaves the token out, else 0: [B, C] x 2 -> [B, C]. ValueError as there."""
    log_ratio = _log_ratio(logp, logp_rollout, cap)
    return (~(log_ratio.abs() <= _log_bound(cap))).to(log_ratio.dtype)


def rows_over(kl: Tensor, mask: Tensor, limit: float) -> Tensor:
    """Return whether the mean of kl [B, C] over a row's sampled tokens is above the limit, or NaN: bool [B]."""
    shapes.same(kl=kl, mask=mask)
    wide = torch.promote_types(kl.dtype, torch.float32)
    total = torch.where(mask, kl, 0).sum(dim=1, dtype=wide)  # [B]
    return ~(total <= limit * mask.sum(dim=1))


def effective_share(moments: Tensor) -> Tensor:
    """Compute Kish's effective sample size per sample, (sum w)^2 / (n sum w^2): [3] -> scalar in [0, 1].

    `moments`: count, sum and sum of squares of the weights (`normalize.moments`), or any multiple of them. 1 when all
    weights are equal; weights that are all 0, of which nothing can be learned, have 0.
    """
    count, first, second = moments.unbind()
    return torch.where(second > 0, first.square() / (count * second), 0).clamp(max=1)  # above 1 only by rounding


def _log_bound(cap: float) -> float:
    if cap < 1:
        raise ValueError(f"cap={cap}: no ratio is within [1 / cap, cap]; at least 1")
    return math.log(cap)


def _log_ratio(logp: Tensor, logp_rollout: Tensor, cap: float) -> Tensor:
    shapes.same(logp=logp, logp_rollout=logp_rollout)
    if not cap > 0:
        raise ValueError(f"cap={cap}: must be positive; math.inf for none")
    wide = torch.promote_types(torch.promote_types(logp.dtype, logp_rollout.dtype), torch.float32)
    return logp.detach().to(wide) - logp_rollout.detach().to(wide)  # [B, C]
