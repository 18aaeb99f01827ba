"""RLOO: REINFORCE leave-one-out (Kool et al. 2019; Ahmadian et al. 2024, arXiv:2402.14740, equation 8).

    A_i = r_i - mean of the other samples' rewards        L = -mean_i sum_t log pi(a_t | s_t) * A_i / max_new_tokens

Differs from the paper by a constant factor only: the "constant" denominator.
Degenerates: a row whose prompt has no other sample left, the others being excluded, has no gradient.
"""

from typing import Literal

from rlhf_pg import functional as F
from rlhf_pg.algorithms.base import Algorithm, Options
from rlhf_pg.types import Credit, TokenLoss


class RLOOOptions(Options):
    refused = dict.fromkeys(("clip_low", "clip_high"), "RLOO has no ratio to clip: use ppo or grpo")
    denominator: Literal["token", "sequence", "constant"] = "constant"


def credit(batch, signals, options: RLOOOptions) -> Credit:
    """Give each row one advantage, on every token of it."""
    row_reward = signals.token_reward.where(batch.mask, 0).sum(dim=1)  # [B]
    advantage = F.credit.leave_one_out(row_reward, batch.group, singleton=0.0)
    return Credit(advantage=advantage[:, None].expand_as(signals.token_reward))


def objective(logp, entropy, batch, signals, credit, options: RLOOOptions) -> TokenLoss:
    return TokenLoss(F.objectives.score_function(logp, credit.advantage))


algorithm = Algorithm(
    "rloo", credit, objective, options=RLOOOptions, needs_old=False, min_group=2, zero_without_advantage=True
)
