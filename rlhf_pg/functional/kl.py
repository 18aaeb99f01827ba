"""Per-token estimators of KL(pi || pi_ref) from samples of pi (Schulman 2020, "Approximating KL divergence").

With d = logp_ref - logp at a token sampled from pi:

    k1 = -d                unbiased, high variance, either sign
    k2 = d^2 / 2           biased, low variance
    k3 = exp(d) - 1 - d    unbiased, low variance, never negative

An unbiased value is not an unbiased gradient. Differentiated as a loss on on-policy samples: k1 has expected gradient
0; k2 has the gradient of KL(pi || pi_ref); k3 has the gradient of the other KL, KL(pi_ref || pi) (GRPO's choice).
k3_corrected has the gradient of KL(pi || pi_ref), on and off policy. As a penalty inside the reward, k1 is the right
one. Differences are taken first, exp once and in float32 or wider.
"""

import math

import torch
from torch import Tensor

from rlhf_pg.functional import shapes


def k1(logp: Tensor, logp_ref: Tensor) -> Tensor:
    """Compute log pi - log pi_ref: [B, C], [B, C] -> [B, C]. ValueError if the shapes differ."""
    shapes.same(logp=logp, logp_ref=logp_ref)
    return logp - logp_ref


def k2(logp: Tensor, logp_ref: Tensor) -> Tensor:
    """Compute (log pi - log pi_ref)^2 / 2: [B, C], [B, C] -> [B, C]. ValueError if the shapes differ."""
    shapes.same(logp=logp, logp_ref=logp_ref)
    return 0.5 * (logp - logp_ref).square()


def k3(logp: Tensor, logp_ref: Tensor) -> Tensor:
    """Compute pi_ref / pi - 1 - log(pi_ref / pi), never negative: [B, C], [B, C] -> [B, C].

    GRPO's estimator (arXiv:2402.03300, equation 4). expm1 keeps it exact where the two policies nearly agree.
    ValueError if the shapes differ.
    """
    shapes.same(logp=logp, logp_ref=logp_ref)
    wide = torch.promote_types(logp.dtype, torch.float32)
    d = (logp_ref - logp).to(wide)  # [B, C]
    return (torch.expm1(d) - d).to(logp.dtype)


def k3_corrected(logp: Tensor, logp_ref: Tensor, logp_old: Tensor) -> Tensor:
    """Compute (pi / pi_old) * k3, the ratio with its gradient: [B, C] x 3 -> [B, C], never negative.

    DeepSeek-V3.2 (arXiv:2512.02556, section 3.1). For tokens sampled from pi_old its expected value is KL(pi ||
    pi_ref), for any pi, and so is its gradient. The states stay those of the samples: what a token does to the KL of
    later tokens is left out, as in every KL term of a loss. No gradient flows into `logp_old`. ValueError if the shapes
    differ.
    """
    shapes.same(logp=logp, logp_ref=logp_ref, logp_old=logp_old)
    wide = torch.promote_types(logp.dtype, torch.float32)
    ratio = (logp - logp_old.detach()).to(wide).exp()  # [B, C]
    return (ratio * k3(logp.to(wide), logp_ref.to(wide))).to(logp.dtype)


def adapt(coefficient: float, measured: float, target: float, samples: int, horizon: int) -> float:
    """Return the KL coefficient after `samples` more samples, changed so that the measured KL comes to the target.

        error = clip(measured / target - 1, -0.2, 0.2)
        coefficient <- coefficient * (1 + error * samples / horizon)

    Ziegler et al. 2019 (arXiv:1909.08593, section 2.2), who write K for samples / horizon. ValueError if `measured` is
    not a number, `target` or `horizon` is not positive, or `samples` is so many that the factor could reach 0.
    """
    if math.isnan(measured) or not (target > 0 and horizon > 0):
        raise ValueError(
            f"measured={measured}, target={target}, horizon={horizon}: need a number and two positive ones"
        )
    if not 0 <= 0.2 * samples < horizon:
        raise ValueError(f"samples={samples} with horizon={horizon}: need samples < 5 * horizon; use a longer horizon")
    error = min(max(measured / target - 1, -0.2), 0.2)
    return coefficient * (1 + error * samples / horizon)
