"""The trust region update: one natural gradient step per rollout, bounded by the KL it causes.

TRPO (Schulman et al. 2015, arXiv:1502.05477, equation 14 and appendix C):

    maximise  L(theta) = mean of rho A      subject to  mean over sampled states of KL(old || theta) <= delta

    g = grad L,  F = the KL's Hessian at old (Fisher matrix)
    x = (F + damping I)^-1 g        by conjugate gradients: `iterations` products F v
    s = sqrt(2 delta / x.(F + damping I) x) x
    step s, s/2, s/4, ... until the measured KL is within delta and the measured L has risen; else no step, counted.

F v is a central difference of the KL's gradient: only first-order passes, so that gradient checkpointing, any attention
kernel and adapters work. The KL is over each state's whole distribution, as in the paper, not only the sampled token.
Products use a share of the rows (`fisher_fraction`); gradient, KL and line search use all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from rlhf_pg import functional as F
from rlhf_pg.data import sharding
from rlhf_pg.models.policy import Snapshot
from rlhf_pg.training.gradient_step import accumulate, micro_batches, select_rows, token_losses, zero_grad
from rlhf_pg.training.learner import Learner
from rlhf_pg.types import Batch, Credit, Signals


def natural_gradient_step(
    learner: Learner,
    batch: Batch,
    signals: Signals,
    credit: Credit | None,
    step: int,
    start: int = 0,
    poll: Callable[[], None] = lambda: None,
) -> Iterator[dict[str, float]]:
    """Take, or refuse, the one step of rollout step `step`, and yield its metrics; nothing if it is done (`start`).

    `poll` runs before every micro-batch and may raise; the weights are then as they were.
    """
    if start:
        return
    if credit is None:
        raise ValueError("a trust region step needs the credit of the whole rollout")
    region = Region(learner, batch, signals, credit, poll)
    try:
        metrics = _step(region, step)
    except BaseException:
        region.move(None)
        raise
    learner.updates += 1
    yield metrics


def _step(region: Region, step: int) -> dict[str, float]:
    options = region.learner.objective.options
    gradient, metrics = region.gradient()
    fisher_rows = _some_rows(region.batch, options.fisher_fraction, region.learner.seed, step)
    region.remember()

    def product(v: Tensor) -> Tensor:
        curvature = F.trust_region.finite_difference(lambda offset: region.kl_gradient(offset, fisher_rows), v)
        return curvature + options.damping * v

    trust = {"trust/max_kl": options.max_kl, "trust/curvature_failed": 0.0, "trust/cg_residual": 0.0}
    scale = kl = improvement = tried = 0.0
    full_step = torch.zeros_like(gradient)  # that the quadratic model allows
    try:
        if gradient.any():
            direction = F.trust_region.conjugate_gradient(product, gradient, options.cg_iterations)
            image = product(direction)
            trust["trust/cg_residual"] = float((gradient - image).norm() / gradient.norm())
            full_step = direction * F.trust_region.step_length(direction, image, options.max_kl)
    except F.trust_region.NegativeCurvature:
        trust["trust/curvature_failed"] = 1.0  # no step is taken; more damping mends it
    if full_step.any():
        search = (options.max_kl, options.line_search_steps, options.backtrack)
        scale, kl, improvement, tried = F.trust_region.line_search(
            lambda share: region.measure(share * full_step), *search
        )
    region.move(scale * full_step if scale else None)
    accepted = scale > 0
    return metrics | trust | {
        "grad_norm": float(gradient.norm()),
        "kl/old": kl if accepted else 0.0,
        "trust/kl": kl if accepted else 0.0,
        "trust/improvement": improvement if accepted else 0.0,
        "trust/accepted": float(accepted),
        "trust/line_search_steps": float(tried),
        **region.passes(),
    }  # fmt: skip


@dataclass
class Region:
    """The surroundings of the present weights: gradient, KL and surrogate at `weights + offset`, offsets flat [n]."""

    learner: Learner
    batch: Batch
    signals: Signals
    credit: Credit
    poll: Callable[[], None]
    forwards: int = 0  # rows forwarded so far
    backwards: int = 0
    start: list[Tensor] = field(init=False)  # the weights that sampled
    hidden: Tensor = field(init=False)  # [B, C, H] at those weights
    head: tuple[Tensor, Tensor | None] = field(init=False)
    surrogate: float = field(init=False)  # L at those weights
    count: Tensor = field(init=False)  # the objective's denominator
    states: Tensor = field(init=False)  # sampled tokens, over all ranks

    def __post_init__(self):
        objective, mask, backend = self.learner.objective, self.batch.mask, self.learner.backend
        self.start = [p.detach().clone() for p in self.learner.parameters]
        counts = F.normalize.count(mask, objective.options.denominator, objective.constant_length)
        local = torch.stack([counts, F.normalize.count(mask, "token")])
        self.count, self.states = backend.sum(local, "denominators").unbind()

    @property
    def rows(self) -> Tensor:
        return torch.arange(len(self.batch.group), device=self.batch.group.device)

    def move(self, offset: Tensor | None) -> None:
        """Set the weights to where they started plus `offset` [n]; None puts them back."""
        with torch.no_grad():
            if offset is None:
                for parameter, origin in zip(self.learner.parameters, self.start, strict=True):
                    parameter.copy_(origin)
                return
            pieces = _unflatten(offset, self.start)
            for parameter, origin, piece in zip(self.learner.parameters, self.start, pieces, strict=True):
                torch.add(origin, piece, out=parameter)

    def gradient(self) -> tuple[Tensor, dict[str, float]]:
        """Compute g [n], the gradient of what is to be maximised, and the metrics of its pass."""
        zero_grad(self.learner)
        metrics = accumulate(self.learner, self.batch, self.signals, self.credit, self.rows, self.poll)
        self._count(len(self.rows), backward=True)
        self.learner.backend.sum_gradients(self.learner.parameters)
        gradient = -_flatten_gradients(self.learner.parameters)
        if not math.isfinite(float(gradient.norm())):
            raise FloatingPointError(f"the gradient norm is {float(gradient.norm())}: no step was taken")
        return gradient, metrics

    @torch.no_grad()
    def remember(self) -> None:
        """Keep the old policy: its log-probs, and what its whole distributions are formed from."""
        policy = self.learner.backend.unwrap(self.learner.policy)
        self.head = policy.frozen_head()
        logp = torch.zeros_like(self.batch.logp_rollout)
        hidden, surrogate = None, self.count.new_zeros(())
        for micro, part in micro_batches(self.learner.policy, self.batch, self.rows, self.learner.update):
            self.poll()
            states, old, entropy = policy.states_and_scores(part)
            hidden = states.new_zeros(*logp.shape, states.shape[-1]) if hidden is None else hidden
            hidden[micro, : old.shape[1]], logp[micro, : old.shape[1]] = states, old.to(logp.dtype)
            surrogate += self._surrogate(micro, part, old, entropy)
        self.hidden = logp.new_zeros(0, 1, 1) if hidden is None else hidden  # None: this rank has no row
        self.signals = replace(self.signals, logp_old=logp)
        self.surrogate = float(self.learner.backend.sum(surrogate, "the surrogate"))
        self._count(len(self.rows))

    def kl_gradient(self, offset: Tensor, rows: Tensor) -> Tensor:
        """Compute the gradient [n] of the mean KL(old || weights + offset) over the states of some rows."""
        self.move(offset)
        zero_grad(self.learner)
        count = self.learner.backend.sum(F.normalize.count(self.batch.mask[rows], "token"), "denominators")
        for micro, part in micro_batches(self.learner.policy, self.batch, rows, self.learner.update):
            self.poll()
            (kl,) = self.learner.policy(part, score=False, old=self._snapshot(micro))
            self.learner.backend.backward(F.normalize.total(kl, part.mask, "token", count), self.learner.policy)
        self._count(len(rows), backward=True)
        self.learner.backend.sum_gradients(self.learner.parameters, "gradients of the KL")
        return _flatten_gradients(self.learner.parameters)

    @torch.no_grad()
    def measure(self, offset: Tensor) -> tuple[float, float]:
        """Return (mean KL(old || weights + offset) over all sampled states, rise of the surrogate)."""
        self.move(offset)
        sums = self.states.new_zeros(2)  # surrogate, KL
        for micro, part in micro_batches(self.learner.policy, self.batch, self.rows, self.learner.update):
            self.poll()
            logp, entropy, kl = self.learner.policy(part, old=self._snapshot(micro))
            divergence = F.normalize.total(kl.double(), part.mask, "token", self.states)
            sums += torch.stack([self._surrogate(micro, part, logp, entropy), divergence])
        self._count(len(self.rows))
        surrogate, moved = self.learner.backend.sum(sums, "the line search").tolist()
        return moved, surrogate - self.surrogate

    def passes(self) -> dict[str, float]:
        """Return forwards and backwards so far, in passes over all rows of all ranks."""
        rows = torch.tensor([self.forwards, self.backwards], dtype=torch.float64)
        done = self.learner.backend.sum(rows, "passes") / sharding.row_numbers(self.batch)[1]
        return {"trust/forwards": float(done[0]), "trust/backwards": float(done[1])}

    def _surrogate(self, rows: Tensor, part: Batch, logp: Tensor, entropy: Tensor) -> Tensor:
        """Return the share of some rows in what is maximised, float64: minus the loss of `accumulate`."""
        objective = self.learner.objective
        how, length = objective.options.denominator, objective.constant_length
        of_part = (select_rows(self.signals, rows, part), select_rows(self.credit, rows, part))
        losses, _ = token_losses(self.learner, part, *of_part, logp, entropy)
        return -F.normalize.total(losses["policy"].double(), part.mask, how, self.count, length)

    def _snapshot(self, rows: Tensor) -> Snapshot:
        return Snapshot(self.hidden[rows], *self.head)

    def _count(self, rows: int, backward: bool = False) -> None:
        self.forwards += rows
        self.backwards += rows * backward


def _some_rows(batch: Batch, fraction: float, seed: int, step: int) -> Tensor:
    """Draw a share of all ranks' rows, at least one, the same for one seed and step; return this rank's of them [m]."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
    number, total = sharding.row_numbers(batch)
    chosen = torch.randperm(total, generator=generator)[: max(1, round(total * fraction))]
    return torch.isin(number, chosen.to(number.device)).nonzero().squeeze(1)


def _flatten_gradients(parameters: Sequence[nn.Parameter]) -> Tensor:
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in parameters])


def _unflatten(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    pieces = flat.split([t.numel() for t in like])
    return [piece.view_as(t) for piece, t in zip(pieces, like, strict=True)]
