"""PPO: proximal policy optimisation (Schulman et al. 2017, arXiv:1707.06347, equations 7, 11 and 12).

    delta_t = r_t + gamma V(s_{t+1}) - V(s_t)        A_t = delta_t + gamma lam A_{t+1}        R_t = A_t + V(s_t)
    L = -mean_t min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A)        rho = pi / pi_old per token

A is standardised over all tokens of the step by the trainer. The value loss on R and its clip are the recipe's `critic`
section, the KL penalty its `kl`, epochs, minibatches and the early stop its `update`.
Differs from the paper: gamma = 1, since an answer is worth the same however long it is; no entropy bonus.
Degenerates: with one optimizer step per rollout rho = 1 and the clip does nothing: REINFORCE with a critic. Advantages
that are all equal are standardised to 0.
"""

from pydantic import Field

from rlhf_pg import functional as F
from rlhf_pg.algorithms.base import Algorithm, Options, clip_metrics
from rlhf_pg.types import Credit, TokenLoss


class PPOOptions(Options):
    standardise: bool = True
    gamma: float = Field(default=1.0, ge=0, le=1)
    lam: float = Field(default=0.95, ge=0, le=1)  # 1: unbiased, return - V; below: less variance, leans on V
    clip_low: float = Field(default=0.2, ge=0, le=1)
    clip_high: float = Field(default=0.2, ge=0)


def credit(batch, signals, options: PPOOptions) -> Credit:
    advantage, returns = F.credit.gae(signals.token_reward, signals.value, batch.mask, options.gamma, options.lam)
    return Credit(advantage=advantage, returns=returns)


def objective(logp, entropy, batch, signals, credit, options: PPOOptions) -> TokenLoss:
    inputs = logp, signals.logp_old, credit.advantage, options.clip_low, options.clip_high
    return TokenLoss(F.objectives.clipped_ratio(*inputs), metrics=clip_metrics(*F.objectives.clipped_sides(*inputs)))


algorithm = Algorithm(
    "ppo", credit, objective, options=PPOOptions, needs_critic=True, credit_by_row=True, zero_without_advantage=True
)
