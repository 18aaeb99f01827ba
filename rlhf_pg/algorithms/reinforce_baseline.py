"""REINFORCE with a baseline (Williams 1992, section 4; Sutton and Barto 2018, section 13.4).

    A_t = R_t - b_t        L = -mean_i sum_t log pi(a_t | s_t) * A_t / max_new_tokens

R_t is REINFORCE's return. The baseline b_t is one of

    critic           V(s_t), a network that the trainer fits to R_t by squared error
    leave_one_out    the mean of R_t over the other samples of the prompt, token t of each, 0 for those that have ended
    group_mean       the same with the sample itself, as in GRPO

The first two do not depend on the token they are subtracted for, so they leave the expected gradient as it is, whatever
the critic says. The last holds the row's own return and shrinks the gradient by (n - 1) / n.
With returns="trajectory" a row has its return at every token, also past its end. At a token that is not the policy's
(tool output) a row counts as ended.
Degenerates: a row whose prompt has no other sample left, the others being excluded, has no gradient under a group's
baseline.
"""

from functools import partial
from typing import Literal

from rlhf_pg import functional as F
from rlhf_pg.algorithms import reinforce
from rlhf_pg.algorithms.base import Algorithm
from rlhf_pg.types import Credit


class BaselineOptions(reinforce.ReinforceOptions):
    baseline: Literal["critic", "leave_one_out", "group_mean"] = "critic"


def credit(batch, signals, options: BaselineOptions) -> Credit:
    returns = reinforce.returns(batch, signals, options)  # [B, C]
    if options.baseline == "critic":
        return Credit(advantage=(returns - signals.value).where(batch.mask, 0), returns=returns)
    if options.returns == "trajectory":
        returns = signals.token_reward.where(batch.mask, 0).sum(dim=1, keepdim=True).expand_as(returns)
    if options.baseline == "leave_one_out":
        compare = partial(F.credit.leave_one_out, singleton=0.0)
    else:
        compare = partial(F.credit.group_advantage, scale=False)
    return Credit(advantage=F.credit.by_column(compare, returns, batch.group).where(batch.mask, 0))


algorithm = Algorithm(
    "reinforce_baseline",
    credit,
    reinforce.objective,
    options=BaselineOptions,
    needs_critic=lambda options: options.baseline == "critic",
    needs_old=False,
    zero_without_advantage=True,
    credit_by_row=lambda options: options.baseline == "critic",
    min_group=lambda options: 1 if options.baseline == "critic" else 2,
)
