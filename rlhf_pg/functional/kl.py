"""Per-token estimators of KL(pi || pi_ref) from samples of pi (Schulman 2020, "Approximating KL divergence").

With d = logp_ref - logp at a token sampled from pi:

    k1 = -d                unbiased, high variance, either sign
    k2 = d^2 / 2           biased, low variance
    k3 = exp(d) - 1 - d    unbiased, low variance, never negative

An unbiased value is not an unbiased gradient. Differentiated as a loss on on-policy samples: k1 has expected gradient
0; k2 has the gradient of KL(pi || pi_ref); k3 has the gradient of the other KL, KL(pi_ref || pi) (GRPO's choice).
As a penalty inside the reward, k1 is the right one. Differences are taken first, exp once and in float32 or wider.
"""

import torch
from torch import Tensor

from rlhf_pg.functional import shapes


def k1(logp: Tensor, logp_ref: Tensor) -> Tensor:
    """log pi - log pi_ref: [B, C], [B, C] -> [B, C]. ValueError if the shapes differ."""
    shapes.same(logp=logp, logp_ref=logp_ref)
    return logp - logp_ref


def k2(logp: Tensor, logp_ref: Tensor) -> Tensor:
    """(log pi - log pi_ref)^2 / 2: [B, C], [B, C] -> [B, C]. ValueError if the shapes differ."""
    shapes.same(logp=logp, logp_ref=logp_ref)
    return 0.5 * (logp - logp_ref).square()


def k3(logp: Tensor, logp_ref: Tensor) -> Tensor:
    """pi_ref / pi - 1 - log(pi_ref / pi): [B, C], [B, C] -> [B, C], never negative. ValueError if the shapes differ.

    GRPO's estimator (arXiv:2402.03300, equation 4). expm1 keeps it exact where the two policies nearly agree.
    """
    shapes.same(logp=logp, logp_ref=logp_ref)
    wide = torch.promote_types(logp.dtype, torch.float32)
    d = (logp_ref - logp).to(wide)  # [B, C]
    return (torch.expm1(d) - d).to(logp.dtype)
