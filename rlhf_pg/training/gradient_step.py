"""The gradient update: epochs x minibatches optimizer steps over one batch of rollouts, micro-batched exactly.

    gradient = sum over micro-batches of d/dtheta [ sum of token losses / count ]

`count` is taken over the whole optimizer step and all ranks before the first micro-batch: one denominator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import fields, replace

import torch
from torch import Tensor, nn

from rlhf_pg import functional as F
from rlhf_pg.config import CriticOptimizer, Optimizer, Update
from rlhf_pg.data import collate, sharding
from rlhf_pg.distributed.backend import Backend
from rlhf_pg.models.hidden_states import backward_prompt
from rlhf_pg.training import credit as credits
from rlhf_pg.training import mismatch
from rlhf_pg.training.learner import CriticLearner, Learner
from rlhf_pg.types import Batch, Credit, Prefix, Signals


def optimizer_steps(
    learner: Learner,
    batch: Batch,
    signals: Signals,
    credit: Credit | None,
    step: int,
    start: int = 0,
    poll: Callable[[], None] = lambda: None,
) -> Iterator[dict[str, float]]:
    """Take the optimizer steps of rollout step `step` from number `start` on, yielding the metrics of each.

    `credit` None: it is computed here, micro-batch by micro-batch, from the values of the same forward. `poll` runs
    before every micro-batch and may raise; the step it interrupts has then changed nothing.
    """
    for number, rows in enumerate(minibatch_rows(batch, learner.update, learner.seed, step)[start:], start):
        zero_grad(learner)
        metrics = accumulate(learner, batch, signals, credit, rows, poll)
        limit = learner.update.max_kl
        if limit is not None and number and metrics["kl/old"] > limit:
            return  # the policy is already that far from the one that sampled
        head = learner.critic if learner.critic and learner.critic.shared else None
        if head:
            metrics["value/grad_norm"] = prepare_critic_step(head, learner.backend)
        norm, rate = prepare_step(
            learner.backend, learner.optimizer, learner.optimization, learner.updates, learner.total_updates
        )
        learner.optimizer.step()  # both gradients are finite: nothing stands between the two steps
        learner.updates += 1
        if head:
            head.optimizer.step()
            head.updates += 1
        yield metrics | {"grad_norm": norm, "lr": rate}


def zero_grad(learner: Learner) -> None:
    """Drop the gradients of policy and value head."""
    learner.optimizer.zero_grad(set_to_none=True)
    if learner.critic:
        learner.critic.optimizer.zero_grad(set_to_none=True)


def prepare_step(
    backend: Backend, optimizer: torch.optim.Optimizer, settings: Optimizer | CriticOptimizer, number: int, total: int
) -> tuple[float, float]:
    """Set the rate of optimizer step `number` of `total`, sum its gradients over all ranks and clip them.

    Returns (norm before clipping, rate). Raises FloatingPointError, on all ranks, for a norm that is not finite; no
    weight has changed then.
    """
    rate = settings.lr * rate_factor(settings, number, total)
    for group in optimizer.param_groups:
        group["lr"] = rate
    norm = backend.clip(optimizer, settings.grad_clip)
    if not math.isfinite(norm):
        raise FloatingPointError(f"the gradient norm before optimizer step {number + 1} is {norm}: it was not taken")
    return norm, rate


def prepare_critic_step(critic: CriticLearner, backend: Backend) -> float:
    """Prepare the critic's next optimizer step likewise; returns the gradient norm."""
    settings = critic.options.optimizer
    return prepare_step(backend, critic.optimizer, settings, critic.updates, critic.total_updates)[0]


def minibatch_rows(batch: Batch, update: Update, seed: int, step: int) -> list[Tensor]:
    """Return the rows [M] of each optimizer step: every epoch a new permutation of the prompts, cut into `minibatches`.

    The prompts of all ranks are cut, and each rank takes the rows it has, maybe none.
    """
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
    number, prompts = sharding.prompt_numbers(batch)
    of_row = number[batch.group]  # [B]
    steps = []
    for _ in range(update.epochs):
        order = torch.randperm(prompts, generator=generator).to(batch.group.device)
        pieces = order.tensor_split(min(update.minibatches, prompts))
        steps += [torch.isin(of_row, piece).nonzero().squeeze(1) for piece in pieces]
    return steps


def accumulate(
    learner: Learner,
    batch: Batch,
    signals: Signals,
    credit: Credit | None,
    rows: Tensor,
    poll: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Add the gradient of `rows` to the parameters' .grad, micro-batch by micro-batch; return means over tokens.

    Rows that would add nothing count in the denominator, but are neither forwarded nor in the metrics. Raises RunError
    if engine and trainer are further apart than the recipe allows.
    """
    objective = learner.objective
    how, constant_length = objective.options.denominator, objective.constant_length
    # Before the first micro-batch: the one denominator, of all rows on all ranks, whatever is forwarded below.
    rows, count, states = _rows_and_denominators(learner, batch, credit, rows)
    shared = learner.critic is not None and learner.critic.shared
    sums: dict[str, Tensor] = {}
    moments: list[credits.Moments] = []
    forwarded, prefix, worst = 0, None, batch.logp_rollout.new_zeros(())
    needed = int(batch.mask[rows].sum()) + int(batch.prompt_lengths[batch.group[rows].unique()].sum())
    for micro_rows, part in micro_batches(learner.policy, batch, rows, learner.update):
        poll()
        logp, entropy, *values = learner.policy(part, value=shared)
        part_signals = select_rows(signals, micro_rows, part)
        if credit is None:
            part_signals = replace(part_signals, value=values[0].detach())
            part_credit = credits.compute(learner, part, part_signals)
            moments.append(credits.moments(part_credit, part_signals, part.mask))
        else:
            part_credit = select_rows(credit, micro_rows, part)
        losses, metrics = token_losses(learner, part, part_signals, part_credit, logp, entropy, *values)
        logp_old = logp.detach() if part_signals.logp_old is None else part_signals.logp_old
        worst = torch.maximum(worst, mismatch.worst(part, logp_old))
        loss = F.normalize.total(losses["policy"], part.mask, how, count, constant_length)
        shares = {k: F.normalize.total(v.detach().float(), part.mask, "token", states) for k, v in metrics.items()}
        shares["loss"] = loss.detach()
        if "value" in losses:
            value_loss = F.normalize.total(losses["value"], part.mask, "token", states)
            loss, shares["value/loss"] = loss + value_loss, value_loss.detach()
        learner.backend.backward(loss, learner.policy)
        for name, share in shares.items():
            sums[name] = sums[name] + share if name in sums else share
        forwarded += collate.positions(part, shares_prompts(learner.policy))
        if part.prefix and part.prefix is not prefix:
            prefix, forwarded = part.prefix, forwarded + part.prefix.length
    sums |= {"tokens/forwarded": torch.tensor(forwarded), "tokens/needed": torch.tensor(needed)}
    totals, all_moments = credits.sum_over_ranks(learner.backend, credits.add(moments), sums)
    counts = {name: int(totals.pop(name)) for name in ("tokens/forwarded", "tokens/needed")}
    step_metrics = mismatch.finished(totals, learner.update)
    step_metrics["mismatch/worst"] = learner.backend.maximum(worst, "the worst token")
    return step_metrics | (credits.metrics(all_moments) if all_moments else {}) | counts


def _rows_and_denominators(
    learner: Learner, batch: Batch, credit: Credit | None, rows: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return, of the rows [M] of an optimizer step: those to forward, the one denominator of all, and how many tokens
    were sampled in those to forward; both numbers over all ranks.

    Where no rank has a row with a loss, the first row of the step is forwarded: gradients are then zeros.
    """
    objective = learner.objective
    denominator = F.normalize.count(batch.mask[rows], objective.options.denominator, objective.constant_length)
    forwarded = rows_with_loss(learner, batch, credit, rows)
    counts = [denominator, F.normalize.count(batch.mask[forwarded], "token"), denominator.new_tensor(len(forwarded))]
    count, states, row_count = learner.backend.sum(torch.stack(counts), "denominators").unbind()
    if row_count:
        return forwarded, count, states
    numbers = sharding.row_numbers(batch)[0][rows].tolist()  # among the rows of all ranks
    lowest = learner.backend.ranks.gather(min(numbers, default=None), "the first row")
    first = min(number for number in lowest if number is not None)
    forwarded = rows[:1] if first in numbers[:1] else rows[:0]
    return forwarded, count, learner.backend.sum(F.normalize.count(batch.mask[forwarded], "token"), "denominators")


def rows_with_loss(learner: Learner, batch: Batch, credit: Credit | None, rows: Tensor) -> Tensor:
    """Return those of the rows [M] that have any loss: all with an advantage that is not exactly 0, or every row where
    something else is learned from or measured on it (KL, values)."""
    shared = learner.critic is not None and learner.critic.shared
    algorithm = learner.objective.algorithm
    every_row = learner.objective.kl.in_loss or shared or learner.update.max_kl is not None
    if credit is None or every_row or not algorithm.zero_without_advantage:
        return rows
    return rows[torch.where(batch.mask, credit.advantage, 0)[rows].any(dim=1)]


def micro_batches(module: nn.Module, batch: Batch, rows: Tensor, update: Update) -> Iterator[tuple[Tensor, Batch]]:
    """Yield the micro-batches of some rows: their row numbers [m], and the batch they make.

    Without gradients, no activations are kept and they are NO_GRADIENT_FACTOR times as large. A prompt whose rows do
    not fit into one is forwarded by `module` first, once, and gets its gradient when its last row's has been taken: so
    take each part's gradient, if any, before the next part.

    Where passes of `module` are collectives, all ranks make the same number of them, and a prompt whose rows do not fit
    is forwarded with each part.
    """
    tokens = update.positions * (1 if torch.is_grad_enabled() else collate.NO_GRADIENT_FACTOR)
    split = collate.micro_batches(batch, rows, tokens, shares_prompts(module))
    if isinstance(backend := getattr(module, "collective_backend", None), Backend):
        with backend.ranks.waiting("forwards and backwards"):
            flat = [piece for pieces in split for piece in pieces]
            more = backend.idle_passes(len(flat))
            for piece in flat:
                yield piece, collate.select(batch, piece)
            for _ in range(more):
                backend.idle_pass(module)
        return
    for pieces in split:
        if len(pieces) == 1:
            yield pieces[0], collate.select(batch, pieces[0])
            continue
        prefix: Prefix = module(collate.select(batch, pieces[0]), prompt_only=True)
        for piece in pieces:
            yield piece, replace(collate.select(batch, piece), prefix=prefix)
        backward_prompt(prefix)


def shares_prompts(module: nn.Module) -> bool:
    """Return whether a policy or critic, prepared by the backend or not, forwards each prompt once."""
    return bool(getattr(module, "module", module).share_prompts)


def select_rows(values, rows: Tensor, part: Batch):
    """Select some rows of the [B, C] tensors of a Signals or Credit, trimmed like `part`."""
    width = part.tokens.shape[1]
    tensors = {f.name: getattr(values, f.name) for f in fields(values)}
    return replace(values, **{k: v[rows, :width] for k, v in tensors.items() if isinstance(v, Tensor)})


def token_losses(
    learner: Learner,
    batch: Batch,
    signals: Signals,
    credit: Credit,
    logp: Tensor,
    entropy: Tensor,
    value: Tensor | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Compute the unreduced losses [B, C] of a micro-batch ("policy", a shared critic's "value"), and what to log."""
    objective, critic = learner.objective, learner.critic
    old = logp.detach() if signals.logp_old is None else signals.logp_old
    signals = replace(signals, logp_old=old)
    token_loss = objective.algorithm.objective(logp, entropy, batch, signals, credit)
    loss, metrics = token_loss.loss, dict(token_loss.metrics)
    weight, mismatch_metrics = mismatch.of_tokens(batch, old, learner.update)
    loss, metrics = loss if weight is None else weight * loss, metrics | mismatch_metrics
    if signals.logp_ref is not None:
        metrics["kl/ref"] = F.kl.k3(logp, signals.logp_ref)
        if objective.kl.in_loss:
            loss = loss + learner.kl_coefficient * _kl(objective.kl.estimator, logp, signals.logp_ref, old)
    metrics["entropy"] = entropy
    metrics["kl/old"] = F.kl.k3(old, logp)
    losses = {"policy": loss}
    if critic and value is not None and credit.returns is not None:
        losses["value"] = F.objectives.value_loss(value, credit.returns, signals.value, critic.options.clip)
    return losses, metrics


def _kl(estimator: str, logp: Tensor, logp_ref: Tensor, logp_old: Tensor) -> Tensor:
    if estimator == "k3_corrected":
        return F.kl.k3_corrected(logp, logp_ref, logp_old)
    return getattr(F.kl, estimator)(logp, logp_ref)


def rate_factor(optimization: Optimizer, number: int, total: int) -> float:
    """Return the share of `lr` for optimizer step `number` (from 0) of `total`: linear warm-up, then the schedule."""
    if number < optimization.warmup_steps:
        return (number + 1) / optimization.warmup_steps
    if optimization.schedule == "constant":
        return 1.0
    done = (number - optimization.warmup_steps) / max(1, total - optimization.warmup_steps)
    if optimization.schedule == "linear":
        return max(0.0, 1.0 - done)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
