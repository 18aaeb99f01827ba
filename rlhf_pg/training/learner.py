"""What is trained and how: the objective, the policy with its optimizer, the critic with its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from rlhf_pg.algorithms.base import BoundAlgorithm
from rlhf_pg.config import KL, Critic, Optimizer, ScoringPasses, Update
from rlhf_pg.distributed.backend import Backend


@dataclass(frozen=True)
class Objective:
    """What is minimised: an algorithm with its options, and the KL to the reference as a loss."""

    algorithm: BoundAlgorithm
    kl: KL
    max_length: int  # rollout.max_new_tokens, the length that the "constant" denominator divides by

    @property
    def options(self) -> Any:
        """The algorithm's own class of `Options`."""
        return self.algorithm.options

    @property
    def constant_length(self) -> int | None:
        return self.max_length if self.options.denominator == "constant" else None


@dataclass
class CriticLearner:
    """The critic's own parameters and how they are trained: a whole model's, or a value head's on the policy."""

    module: nn.Module  # models.critic.Critic, prepared by the backend; or the policy's ValueHead
    optimizer: torch.optim.Optimizer
    options: Critic
    total_updates: int
    updates: int = 0  # optimizer steps done
    base: str | None = None  # digest of the weights under its adapter, taken once

    @property
    def shared(self) -> bool:
        """Whether it is a head on the policy, which then learns in the policy's own optimizer steps."""
        return self.options.on_policy_model


@dataclass
class Learner:
    """The policy under training and how it is trained."""

    policy: nn.Module  # prepared by the backend
    optimizer: torch.optim.Optimizer
    backend: Backend
    objective: Objective
    update: Update  # with a micro-batch size
    optimization: Optimizer
    seed: int
    total_updates: int  # optimizer steps of the whole run: the learning rate schedule's length
    updates: int = 0  # optimizer steps done
    critic: CriticLearner | None = None
    passes: ScoringPasses = ScoringPasses()  # noqa: RUF009 (frozen)
    kl_coefficient: float = field(init=False)  # as it is now: it moves when `kl.target` is set

    def __post_init__(self):
        self.kl_coefficient = self.objective.kl.coefficient

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Those of the policy that are trained, without a value head's."""
        return optimized(self.optimizer)


def optimized(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """Return the parameters an optimizer steps."""
    return [p for group in optimizer.param_groups for p in group["params"]]
