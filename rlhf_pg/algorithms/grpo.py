"""GRPO: group-relative policy optimisation (Shao et al. 2024, DeepSeekMath, arXiv:2402.03300, equations 3 and 4).

    A_i = (r_i - mean(r)) / (std(r) + eps)        over the G samples of one prompt, std with n - 1, eps = 1e-4
    L   = mean_i mean_t [ -min(rho A, clip(rho, 1 - eps_low, 1 + eps_high) A) + beta * k3(pi, pi_ref) ]

with rho = pi / pi_old per token. The KL term is the recipe's `kl` section and is added by the trainer.
Degenerates: a group whose rewards are all equal has advantage 0 (counted as reward/zero_std_groups); a group of one
is refused.
On-policy with one optimizer step rho = 1, and the gradient is REINFORCE's with a group baseline.
"""

from pydantic import Field

from rlhf_pg import functional as F
from rlhf_pg.algorithms.base import Algorithm, Options
from rlhf_pg.types import Credit, TokenLoss


class GRPOOptions(Options):
    denominator: str = Field("sequence", pattern="^(token|sequence|constant)$")
    scale_by_std: bool = True  # False: Dr.GRPO (arXiv:2503.20783)
    std_eps: float = Field(1e-4, gt=0)
    clip_low: float = Field(0.2, ge=0, lt=1)
    clip_high: float = Field(0.2, ge=0)  # DAPO: 0.28 (arXiv:2503.14476)


def credit(batch, signals, options: GRPOOptions) -> Credit:
    """One advantage per row, on every token of the row."""
    row_reward = signals.token_reward.sum(dim=1)  # [B]
    advantage = F.credit.group_advantage(row_reward, batch.group, scale=options.scale_by_std, eps=options.std_eps)
    return Credit(advantage=advantage[:, None].expand_as(signals.token_reward))


def objective(logp, entropy, batch, signals, credit, options: GRPOOptions) -> TokenLoss:
    loss = F.objectives.clipped_ratio(logp, signals.logp_old, credit.advantage, options.clip_low, options.clip_high)
    clipped = F.objectives.is_clipped(logp, signals.logp_old, credit.advantage, options.clip_low, options.clip_high)
    return TokenLoss(loss, metrics={"clip/fraction": clipped})


algorithm = Algorithm("grpo", credit, objective, options=GRPOOptions, min_group=2)
