"""TRPO: trust region policy optimisation (Schulman et al. 2015, arXiv:1502.05477, equation 14 and appendix C).

    maximise   mean_t rho A        rho = pi / pi_old per token
    under      mean over the sampled states of KL(pi_old(. | s) || pi(. | s)) <= max_kl

A is the generalised advantage estimate, with lam = 1 the return minus V. The step is the natural gradient's, F^-1 g by
conjugate gradient, as long as max_kl allows and shortened until the measured KL and the surrogate agree: the trainer's
trust region update, whose options are in `TrustRegionOptions`. The value loss is the recipe's `critic` section.
Differs from the paper: the critic and GAE (the paper has the return; with lam < 1 see arXiv:1506.02438); the Fisher
product is a finite difference of gradients of the KL; damping is an option.
Degenerates: advantages that are all 0 give no direction, and no step is taken.
"""

from pydantic import Field

from rlhf_pg import functional as F
from rlhf_pg.algorithms.base import Algorithm, TrustRegionOptions
from rlhf_pg.types import Credit, TokenLoss


class TRPOOptions(TrustRegionOptions):
    refused = dict.fromkeys(("clip_low", "clip_high"), "TRPO bounds the KL, not the ratio: set max_kl, or use ppo")
    gamma: float = Field(default=1.0, ge=0, le=1)
    lam: float = Field(default=1.0, ge=0, le=1)


def credit(batch, signals, options: TRPOOptions) -> Credit:
    advantage, returns = F.credit.gae(signals.token_reward, signals.value, batch.mask, options.gamma, options.lam)
    return Credit(advantage=advantage, returns=returns)


def objective(logp, entropy, batch, signals, credit, options: TRPOOptions) -> TokenLoss:
    return TokenLoss(F.objectives.ratio(logp, signals.logp_old, credit.advantage))


algorithm = Algorithm(
    "trpo",
    credit,
    objective,
    options=TRPOOptions,
    update="trust_region",
    needs_critic=True,
    credit_by_row=True,
    zero_without_advantage=True,
)
