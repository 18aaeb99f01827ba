"""GRPO: group-relative policy optimisation (Shao et al. 2024, DeepSeekMath, arXiv:2402.03300, equations 3 and 4).

    A_i = (r_i - mean(r)) / (std(r) + eps)        over the G samples of one prompt, std with n - 1, eps = 1e-4
    L   = mean_i mean_t [ -min(rho A, clip(rho, 1 - eps_low, 1 + eps_high) A) + beta * k3(pi, pi_ref) ]

with rho = pi / pi_old per token. The KL term is the recipe's `kl` section and is added by the trainer. Variants, all by
options: Dr.GRPO (no std, "constant"), DAPO (clip_high, "token"), and two other surrogates, "gspo" and "cispo".
Degenerates: a group whose rewards are all equal has advantage 0 (counted as reward/zero_std_groups); a group of one
is refused.
On-policy with one optimizer step rho = 1, and the gradient is REINFORCE's with a group baseline.
"""

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from rlhf_pg import functional as F
from rlhf_pg.algorithms.base import Algorithm, Options, clip_metrics
from rlhf_pg.types import Credit, TokenLoss


class GRPOOptions(Options):
    denominator: Literal["token", "sequence", "constant"] = "sequence"
    scale_by_std: bool = True  # False: Dr.GRPO (arXiv:2503.20783)
    std_eps: float = Field(default=1e-4, gt=0)
    clip_low: float = Field(default=0.2, ge=0, le=1)  # GSPO's paper: 3e-4; CISPO's: 1
    clip_high: float = Field(default=0.2, ge=0)  # DAPO: 0.28 (arXiv:2503.14476); GSPO's paper: 4e-4
    surrogate: Literal["clip", "gspo", "cispo"] = "clip"  # gspo: rho of the whole row; cispo: the clip keeps gradients

    @field_validator("std_eps")
    @classmethod
    def _eps_needs_std(cls, std_eps: float, info: ValidationInfo) -> float:
        if info.data.get("scale_by_std") is False and std_eps != cls.model_fields["std_eps"].default:
            raise ValueError("is added to a std that scale_by_std=false leaves out: remove it")
        return std_eps

    @field_validator("surrogate")
    @classmethod
    def _gspo_is_a_mean_over_rows(cls, surrogate: str, info: ValidationInfo) -> str:
        if surrogate == "gspo" and info.data.get("denominator", "sequence") != "sequence":
            raise ValueError(
                "gspo has one ratio per row, so its objective is a mean over rows: use denominator=sequence"
            )
        return surrogate


def credit(batch, signals, options: GRPOOptions) -> Credit:
    """Give each row one advantage, on every token of it."""
    row_reward = signals.token_reward.where(batch.mask, 0).sum(dim=1)  # [B]
    advantage = F.credit.group_advantage(row_reward, batch.group, scale=options.scale_by_std, eps=options.std_eps)
    return Credit(advantage=advantage[:, None].expand_as(signals.token_reward))


def objective(logp, entropy, batch, signals, credit, options: GRPOOptions) -> TokenLoss:
    old, bounds = signals.logp_old, (options.clip_low, options.clip_high)
    if options.surrogate == "cispo":
        loss = F.objectives.clipped_weight(logp, old, credit.advantage, *bounds)
        return TokenLoss(loss, metrics=clip_metrics(*F.objectives.outside_sides(logp, old, *bounds)))
    if options.surrogate == "gspo":
        logp = F.objectives.sequence_level(logp, old, batch.mask)
    loss = F.objectives.clipped_ratio(logp, old, credit.advantage, *bounds)
    return TokenLoss(loss, metrics=clip_metrics(*F.objectives.clipped_sides(logp, old, credit.advantage, *bounds)))


algorithm = Algorithm("grpo", credit, objective, options=GRPOOptions, min_group=2, zero_without_advantage=True)
