"""Policy objectives as unreduced per-token losses [B, C], to minimise. `normalize` is the only place that divides.

rho = pi / pi_old per token, formed in log space: difference first, exp once, in float32 or wider.
`advantage` and `logp_old` are constants of the estimators: no gradient flows into them.
Padding needs no care here: every entry depends on its own column only, and `normalize` drops what the mask excludes.
"""

import torch
from torch import Tensor

from rlhf_pg.functional import shapes


def score_function(logp: Tensor, advantage: Tensor) -> Tensor:
    """Compute -log pi * A: [B, C], [B, C] -> [B, C].

    REINFORCE (Williams 1992; policy gradient theorem, Sutton et al. 1999). Its gradient is -A * grad log pi. Unbiased
    when A is the return or the reward-to-go minus any function of the state. ValueError if the shapes differ.
    """
    shapes.same(logp=logp, advantage=advantage)
    return -logp * advantage.detach()


def ratio(logp: Tensor, logp_old: Tensor, advantage: Tensor) -> Tensor:
    """Compute TRPO's surrogate, -rho * A: [B, C] x 3 -> [B, C] (Schulman et al. 2015, arXiv:1502.05477, equation 14).

    At pi = pi_old its gradient is the score function's. ValueError if the shapes differ.
    """
    rho = _ratio(logp, logp_old, advantage)
    return (-rho * advantage.detach()).to(logp.dtype)


def clipped_ratio(
    logp: Tensor, logp_old: Tensor, advantage: Tensor, clip_low: float = 0.2, clip_high: float = 0.2
) -> Tensor:
    """Compute -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A): [B, C] x 3 -> [B, C].

    PPO (Schulman et al. 2017, arXiv:1707.06347, equation 7); DAPO's asymmetric clip when the two bounds differ
    (arXiv:2503.14476, equation 8). ValueError if the shapes differ, or a bound is not 0 <= clip_low <= 1, clip_high >=
    0.
    """
    _check_clip(clip_low, clip_high)
    rho = _ratio(logp, logp_old, advantage)
    constant = advantage.detach()
    clipped = rho.clamp(1 - clip_low, 1 + clip_high)  # [B, C]
    return -torch.minimum(rho * constant, clipped * constant).to(logp.dtype)


def clipped_weight(
    logp: Tensor, logp_old: Tensor, advantage: Tensor, clip_low: float = 1.0, clip_high: float = 0.2
) -> Tensor:
    """Compute -sg(clip(rho, 1 - clip_low, 1 + clip_high)) * A * log pi: [B, C] x 3 -> [B, C], sg = without gradient.

    CISPO (MiniMax-M1, arXiv:2506.13585, equations 4 and 5): the clip bounds a token's weight and never takes its
    gradient away. clip_low = 1 sets no lower bound, as the paper does. Biased as soon as a weight is clipped.
    ValueError as in `clipped_ratio`.
    """
    _check_clip(clip_low, clip_high)
    weight = _ratio(logp, logp_old, advantage).detach().clamp(1 - clip_low, 1 + clip_high)  # [B, C]
    return (-weight * advantage.detach() * logp).to(logp.dtype)


def sequence_level(logp: Tensor, logp_old: Tensor, mask: Tensor) -> Tensor:
    """Return a stand-in for logp whose ratio on every token is the row's: [B, C] x 2, mask [B, C] -> [B, C].

        s_i = exp(mean_t (logp - logp_old))        s_it = sg(s_i) * pi / sg(pi)        sg = without gradient

    GSPO (Zheng et al. 2025, arXiv:2507.18071, equation 7; s_it is the token form of its section 4.3). With it in the
    place of logp, `clipped_ratio` under the "sequence" denominator has the value and the gradient of the paper's
    objective, mean_i min(s_i A_i, clip(s_i) A_i). Outside the mask the result is 0, and what the inputs hold there, NaN
    included, is never used. ValueError if the shapes differ.
    """
    shapes.same(logp=logp, logp_old=logp_old, mask=mask)
    shapes.boolean(mask=mask)
    wide = torch.promote_types(logp.dtype, torch.float32)
    old = logp_old.detach().to(wide)
    difference = torch.where(mask, logp.detach().to(wide) - old, 0)  # [B, C]
    mean = difference.sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(min=1)  # [B, 1]: log s_i
    return torch.where(mask, old + mean + (logp - logp.detach()), 0).to(logp.dtype)


def value_loss(value: Tensor, returns: Tensor, value_old: Tensor | None = None, clip: float | None = None) -> Tensor:
    """Compute (V - R)^2 / 2 per state: [B, C] x 2 -> [B, C]. No gradient flows into `returns` or `value_old`.

    With `clip` the larger of that and the same for V_old + clip(V - V_old, -clip, clip), as in the published code of
    PPO (Schulman et al. 2017; Huang et al. 2022, "The 37 implementation details of PPO"): a value that has moved by
    more than `clip` towards its target has no gradient. ValueError if the shapes differ, or `clip` is not positive or
    has no `value_old` to clip to.
    """
    shapes.same(value=value, returns=returns)
    target = returns.detach()
    loss = 0.5 * (value - target).square()
    if clip is None:
        return loss
    if value_old is None:
        raise ValueError(f"clip={clip} needs value_old, the values before the update: give it, or leave clip out")
    if not clip > 0:
        raise ValueError(f"clip={clip}: must be positive; leave it out for none")
    shapes.same(value=value, value_old=value_old)
    old = value_old.detach()
    clipped = old + (value - old).clamp(-clip, clip)  # [B, C]
    return torch.maximum(loss, 0.5 * (clipped - target).square())


def is_clipped(logp: Tensor, logp_old: Tensor, advantage: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """Return 1 where `clipped_ratio` has lost its gradient, else 0: [B, C] x 3 -> [B, C], without gradient.

    That is rho > 1 + clip_high with A > 0, or rho < 1 - clip_low with A < 0. ValueError as in `clipped_ratio`.
    """
    below, above = clipped_sides(logp, logp_old, advantage, clip_low, clip_high)
    return below + above


def clipped_sides(
    logp: Tensor, logp_old: Tensor, advantage: Tensor, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """Return `is_clipped` in two, each [B, C]: 1 where rho is below its bound, 1 where it is above."""
    below, above = outside_sides(logp, logp_old, clip_low, clip_high)
    shapes.same(logp=logp, advantage=advantage)
    return torch.where(advantage < 0, below, 0), torch.where(advantage > 0, above, 0)


def is_outside(logp: Tensor, logp_old: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """Return 1 where `clipped_weight` bounds the ratio, whatever the advantage, else 0: [B, C] x 2 -> [B, C]."""
    below, above = outside_sides(logp, logp_old, clip_low, clip_high)
    return below + above


def outside_sides(logp: Tensor, logp_old: Tensor, clip_low: float, clip_high: float) -> tuple[Tensor, Tensor]:
    """Return `is_outside` in two, each [B, C]: 1 where rho is below its bound, 1 where it is above."""
    _check_clip(clip_low, clip_high)
    rho = _ratio(logp, logp_old, logp).detach()
    return (rho < 1 - clip_low).to(logp.dtype), (rho > 1 + clip_high).to(logp.dtype)


def _ratio(logp: Tensor, logp_old: Tensor, advantage: Tensor) -> Tensor:
    """Compute pi / pi_old [B, C] in float32 or wider. ValueError if the shapes differ."""
    shapes.same(logp=logp, logp_old=logp_old, advantage=advantage)
    wide = torch.promote_types(logp.dtype, torch.float32)
    return (logp - logp_old.detach()).to(wide).exp()


def _check_clip(clip_low: float, clip_high: float) -> None:
    if not (0 <= clip_low <= 1 and clip_high >= 0):
        raise ValueError(f"clip_low={clip_low}, clip_high={clip_high}: need 0 <= clip_low <= 1 and clip_high >= 0")
