"""The Algorithm record, and how a name in a recipe becomes one. Imports no torch: recipes are checked without it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rlhf_pg.names import load_record, shipped
from rlhf_pg.types import Batch, Credit, Signals, TokenLoss

if TYPE_CHECKING:
    from torch import Tensor


class Options(BaseModel):
    """Options every algorithm has; an algorithm file subclasses it to add its own. Defaults are the paper's."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    refused: ClassVar[Mapping[str, str]] = {}  # keys of other algorithms, each with the reason why it is none here
    denominator: Literal["token", "sequence", "constant"] = "token"
    standardise: bool = False  # advantages to mean 0 and std 1 over all sampled tokens of the step, on all ranks

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            values = {key: value for key, value in values.items() if value is not None}  # null: as if left out
        keys = [key for key in cls.refused if isinstance(values, Mapping) and key in values]
        if keys:
            raise ValidationError.from_exception_data(
                cls.__name__,
                [{"type": "value_error", "loc": (k,), "input": None, "ctx": {"error": cls.refused[k]}} for k in keys],
            )
        return values


class TrustRegionOptions(Options):
    """What `update="trust_region"` reads (Schulman et al. 2015, arXiv:1502.05477, section 6 and appendix C)."""

    max_kl: float = Field(default=0.01, gt=0)  # delta: KL(old || new), in nats, mean over the sampled states
    damping: float = Field(default=0.1, ge=0)  # added to the Fisher matrix's diagonal
    cg_iterations: int = Field(default=10, ge=1)
    fisher_fraction: float = Field(default=0.1, gt=0, le=1)  # share of the step's rows in Fisher-vector products
    line_search_steps: int = Field(default=10, ge=1)
    backtrack: float = Field(default=0.5, gt=0, lt=1)  # a step that fails is shortened by this factor


@dataclass(frozen=True)
class Algorithm:
    """A policy-gradient algorithm as data. The trainer knows these fields and nothing else about it."""

    name: str
    credit: Callable[[Batch, Signals, Any], Credit]
    objective: Callable[[Tensor, Tensor, Batch, Signals, Credit, Any], TokenLoss]  # (logp, entropy, ...), each [B, C]
    options: type[Options] = Options
    update: Literal["gradient", "trust_region"] = "gradient"
    needs_critic: bool | Callable[[Any], bool] = False  # a function: it depends on the options
    needs_old: bool = True  # False: `logp_old` is never read, so it is not computed; one optimizer step at most
    credit_by_row: bool | Callable[[Any], bool] = False  # a row's credit reads no other: one micro-batch is enough
    min_group: int | Callable[[Any], int] = 1
    zero_without_advantage: bool = False  # a token with advantage 0 has loss 0 and no gradient, whatever the policy

    def bind(self, options: Options | Mapping[str, Any]) -> BoundAlgorithm:
        """Fix the options, given as a recipe has them or validated already.

        Raises pydantic's ValidationError for an unknown option, a value out of range or a contradiction.
        """
        values = self.options.model_validate(options)

        def value_of(field: Any) -> Any:
            return field(values) if callable(field) else field

        return BoundAlgorithm(
            name=self.name,
            options=values,
            credit=lambda batch, signals: self.credit(batch, signals, values),
            objective=lambda logp, entropy, batch, signals, credit: self.objective(
                logp, entropy, batch, signals, credit, values
            ),
            update=self.update,
            needs_critic=value_of(self.needs_critic),
            needs_old=self.needs_old,
            credit_by_row=value_of(self.credit_by_row),
            min_group=value_of(self.min_group),
            zero_without_advantage=self.zero_without_advantage,
        )


@dataclass(frozen=True)
class BoundAlgorithm:
    """An algorithm with its options fixed: `Algorithm` with plain values, and functions that take no `options`."""

    name: str
    options: Options
    credit: Callable[[Batch, Signals], Credit]
    objective: Callable[[Tensor, Tensor, Batch, Signals, Credit], TokenLoss]  # (logp, entropy, ...), each [B, C]
    update: Literal["gradient", "trust_region"]
    needs_critic: bool
    needs_old: bool
    credit_by_row: bool
    min_group: int
    zero_without_advantage: bool


def clip_metrics(below: Tensor, above: Tensor) -> dict[str, Tensor]:
    """Return what to log of a clip: below and above, each [B, C], 1 where the ratio has left its bound to that side."""
    return {"clip/fraction": below + above, "clip/low": below, "clip/high": above}


def names() -> list[str]:
    """Return the names of the shipped algorithms: the files beside this one."""
    return shipped("rlhf_pg.algorithms")


def resolve(name: str) -> Algorithm:
    """Return an algorithm by shipped name ("grpo") or dotted path; see `names.load_record`."""
    return load_record(name, "rlhf_pg.algorithms", Algorithm)
