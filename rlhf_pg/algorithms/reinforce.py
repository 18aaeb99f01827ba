"""REINFORCE (Williams 1992, "Simple statistical gradient-following algorithms"; Sutton et al. 1999, theorem 1).

    L = -mean_i sum_t log pi(a_t | s_t) * R_t / max_new_tokens
    R_t = r_t + gamma R_{t+1}    "reward_to_go": what the token can still change
    R_t = sum of all r           "trajectory": the bare theorem; same expectation, more variance

Differs from the papers by a constant factor only: the "constant" denominator divides by a number that no sample can
change, so the expected gradient is the exact one. "token" and "sequence" weigh a row by its sampled length: biased.
With gamma < 1 the factor gamma^t of the discounted objective's gradient is left out, as is usual (Nota and Thomas 2020,
arXiv:1906.07073): that is biased for either objective, by little where gamma is near 1.
Degenerates: rewards that are all equal still push every sampled token, up or down; a baseline takes that noise away.
Without a ratio to the policy that sampled there is one optimizer step per rollout.
"""

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from rlhf_pg import functional as F
from rlhf_pg.algorithms.base import Algorithm, Options
from rlhf_pg.types import Credit, TokenLoss

NO_RATIO = dict.fromkeys(("clip_low", "clip_high"), "REINFORCE has no ratio to clip: use ppo or grpo")
NO_LAM = {"lam": "there is no GAE here, the return is not bootstrapped: use ppo or trpo"}


class ReinforceOptions(Options):
    refused = NO_RATIO | NO_LAM
    denominator: Literal["token", "sequence", "constant"] = "constant"
    returns: Literal["reward_to_go", "trajectory"] = "reward_to_go"
    gamma: float = Field(default=1.0, ge=0, le=1)

    @field_validator("gamma")
    @classmethod
    def _discount_needs_time(cls, gamma: float, info: ValidationInfo) -> float:
        if gamma < 1 and info.data.get("returns") == "trajectory":
            raise ValueError(
                f"returns=trajectory is one sum for the row, not discounted, gamma is {gamma:g}: use 1, or "
                "returns=reward_to_go"
            )
        return gamma


def returns(batch, signals, options: ReinforceOptions):
    """Compute R_t on every sampled token, 0 elsewhere: [B, C]."""
    if options.returns == "trajectory":
        return F.credit.trajectory_return(signals.token_reward, batch.mask)
    return F.credit.reward_to_go(signals.token_reward, batch.mask, options.gamma)


def credit(batch, signals, options: ReinforceOptions) -> Credit:
    return Credit(advantage=returns(batch, signals, options))


def objective(logp, entropy, batch, signals, credit, options) -> TokenLoss:
    return TokenLoss(F.objectives.score_function(logp, credit.advantage))


algorithm = Algorithm(
    "reinforce", credit, objective, options=ReinforceOptions, needs_old=False, zero_without_advantage=True
)
