"""The sections of a recipe that say how weights learn from rollouts: KL, optimizer, update, critic."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rlhf_pg.config.section import HomeText, Section


class KL(Section):
    coefficient: float = Field(default=0.04, ge=0, description="weight of the KL to the reference; 0 = none")
    placement: Literal["loss", "reward"] = Field(default="loss", description="loss term, or reward penalty")
    estimator: Literal["k1", "k2", "k3", "k3_corrected"] = Field(
        default="k3",
        description="k1 only as a reward penalty; k3_corrected, only in the loss, has the reverse KL's gradient",
    )
    target: float | None = Field(
        default=None, gt=0, description="nats per token to steer kl/ref to, by adapting the coefficient"
    )
    horizon: int = Field(default=10_000, ge=1, description="samples over which the coefficient adapts")

    @property
    def in_loss(self) -> bool:
        """Whether a KL term is added to the loss."""
        return self.coefficient > 0 and self.placement == "loss"

    @property
    def in_reward(self) -> bool:
        """Whether the rewards are lowered by a KL penalty."""
        return self.coefficient > 0 and self.placement == "reward"


class Optimizer(Section):
    lr: float = Field(default=1e-6, gt=0, description="AdamW learning rate at its highest")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        default=(0.9, 0.999), description="AdamW's decay of its two averages"
    )
    eps: float = Field(default=1e-8, gt=0, description="AdamW's")
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW's")
    grad_clip: float = Field(default=1.0, gt=0, description="largest global gradient norm")
    schedule: Literal["constant", "linear", "cosine"] = Field(default="constant", description="rate after warm-up")
    warmup_steps: int = Field(default=0, ge=0, description="optimizer steps with a rising rate")


class Mismatch(Section):
    """What is done where the engine that sampled and the trainer that learns are not the same policy."""

    cap: float | None = Field(
        default=None,
        ge=1,
        description="weigh each token's loss by trainer / engine probability, at most this; default: 2 with overlap",
    )
    beyond: Literal["truncate", "mask"] = Field(
        default="truncate",
        description="weights beyond the cap are cut to it, or leave their token out (below 1 / cap too)",
    )
    limit: float | None = Field(
        default=None, gt=0, description="alarm above this mismatch/kl, nats per token; 0.01 is a good one"
    )
    action: Literal["warn", "mask", "stop"] = Field(
        default="warn",
        description="above the limit: say so; leave out each row that is above it itself; or stop before learning",
    )


class Update(Section):
    epochs: int = Field(default=1, ge=1, description="passes over each rollout step's rows")
    minibatches: int = Field(default=1, ge=1, description="optimizer steps per epoch")
    tokens_per_microbatch: int | None = Field(
        default=None,
        ge=1,
        description="positions forwarded at once, cannot change results; default: 16,384 or what fits on a GPU, "
        "256 MB's on a CPU",
    )
    share_prompts: bool = Field(default=True, description="forward each prompt once per group; cannot change results")
    max_kl: float | None = Field(
        default=None, gt=0, description="stop the step's updates at this KL(old || new), nats per token"
    )
    mismatch: Mismatch = Mismatch()

    @property
    def positions(self) -> int:
        """Return `tokens_per_microbatch`, which `setup.build` fills in where a recipe names none."""
        if self.tokens_per_microbatch is None:
            raise ValueError("update.tokens_per_microbatch is not settled: a learner needs a number")
        return self.tokens_per_microbatch

    @property
    def on_policy(self) -> bool:
        """Whether a rollout has one optimizer step: logp_old, of the weights before the update, is then logp."""
        return self.epochs * self.minibatches == 1


class CriticOptimizer(Optimizer):
    lr: float = Field(default=1e-5, gt=0, description="AdamW learning rate at its highest")


class Critic(Section):
    """The value network of algorithms that have one."""

    backbone: HomeText = Field(
        default="copy",
        description="copy: a second model from model.path; policy: a value head on the policy; or a folder or hub name",
    )
    epochs: int = Field(default=1, ge=1, description="passes over each rollout step's rows; not for backbone policy")
    minibatches: int = Field(default=1, ge=1, description="optimizer steps per epoch; not for backbone policy")
    coefficient: float = Field(
        default=0.5, ge=0, description="of the value loss in a shared backbone; 0 trains the head alone"
    )
    clip: float | None = Field(
        default=None, gt=0, description="PPO's option: no gradient moves a value further than this in one rollout step"
    )
    warmup: int = Field(default=0, ge=0, description="rollout steps at the start on which only the critic learns")
    optimizer: CriticOptimizer = Field(
        default=CriticOptimizer(),
        description="keys as in optimizer, whose values hold for those that are not given, but for lr (1e-5)",
    )

    @property
    def on_policy_model(self) -> bool:
        """Whether the critic is a head on the policy, which learns in the policy's own optimizer steps."""
        return self.backbone == "policy"
