"""Policy objectives as unreduced per-token losses [B, C], to minimise. `normalize` is the only place that divides.

rho = pi / pi_old per token, formed in log space: difference first, exp once, in float32 or wider.
`advantage` and `logp_old` are constants of the estimators: no gradient flows into them.
Padding needs no care here: every entry depends on its own column only, and `normalize` drops what the mask excludes.
"""

import torch
from torch import Tensor

from rlhf_pg.functional import shapes


def score_function(logp: Tensor, advantage: Tensor) -> Tensor:
    """-log pi * A: [B, C], [B, C] -> [B, C] (Williams 1992, REINFORCE; policy gradient theorem, Sutton et al. 1999).

    Its gradient is -A * grad log pi. Unbiased when A is the return or the reward-to-go minus any function of the state.
    ValueError if the shapes differ.
    """
    shapes.same(logp=logp, advantage=advantage)
    return -logp * advantage.detach()


def ratio(logp: Tensor, logp_old: Tensor, advantage: Tensor) -> Tensor:
    """-rho * A: [B, C] x 3 -> [B, C], the surrogate of TRPO (Schulman et al. 2015, arXiv:1502.05477, equation 14).

    At pi = pi_old its gradient is the score function's. ValueError if the shapes differ.
    """
    rho = _ratio(logp, logp_old, advantage)
    return (-rho * advantage.detach()).to(logp.dtype)


def clipped_ratio(
    logp: Tensor, logp_old: Tensor, advantage: Tensor, clip_low: float = 0.2, clip_high: float = 0.2
) -> Tensor:
    """-min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A): [B, C] x 3 -> [B, C].

    PPO (Schulman et al. 2017, arXiv:1707.06347, equation 7); DAPO's asymmetric clip when the two bounds differ
    (arXiv:2503.14476, equation 8). ValueError if the shapes differ, or a bound is not 0 <= clip_low <= 1, clip_high >=
    0.
    """
    _check_clip(clip_low, clip_high)
    rho = _ratio(logp, logp_old, advantage)
    constant = advantage.detach()
    clipped = rho.clamp(1 - clip_low, 1 + clip_high)  # [B, C]
    return -torch.minimum(rho * constant, clipped * constant).to(logp.dtype)


def is_clipped(logp: Tensor, logp_old: Tensor, advantage: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """1 where `clipped_ratio` has lost its gradient, else 0: [B, C] x 3 -> [B, C], without gradient.

    That is rho > 1 + clip_high with A > 0, or rho < 1 - clip_low with A < 0. ValueError as in `clipped_ratio`.
    """
    _check_clip(clip_low, clip_high)
    rho = _ratio(logp, logp_old, advantage).detach()
    above = (rho > 1 + clip_high) & (advantage > 0)
    below = (rho < 1 - clip_low) & (advantage < 0)
    return (above | below).to(logp.dtype)


def _ratio(logp: Tensor, logp_old: Tensor, advantage: Tensor) -> Tensor:
    """pi / pi_old [B, C] in float32 or wider, after the shape check every ratio objective shares."""
    shapes.same(logp=logp, logp_old=logp_old, advantage=advantage)
    wide = torch.promote_types(logp.dtype, torch.float32)
    return (logp - logp_old.detach()).to(wide).exp()


def _check_clip(clip_low: float, clip_high: float) -> None:
    if not (0 <= clip_low <= 1 and clip_high >= 0):
        raise ValueError(f"clip_low={clip_low}, clip_high={clip_high}: need 0 <= clip_low <= 1 and clip_high >= 0")
