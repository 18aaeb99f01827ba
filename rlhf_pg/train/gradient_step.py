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
from rlhf_pg.train import credit as credits
from rlhf_pg.train import mismatch
from rlhf_pg.train.learner import CriticLearner, Learner
from rlhf_pg.types import Batch, Credit, Prefix, Signals


def update(
    learner: Learner,
    batch: Batch,
    signals: Signals,
    credit: Credit | None,
    step: int,
    start: int = 0,
    poll: Callable[[], None] = lambda: None,
) -> Iterator[dict[str, float]]:
    """Take the optimizer steps of rollout step `step` from number `start` on, yielding the metrics of each.

    `credit` None: it is made here, micro-batch by micro-batch, from the values of the same forward. `poll` runs before
    every micro-batch and may raise; the step it interrupts has then changed nothing.
    """
    for number, rows in enumerate(plan(batch, learner.update, learner.seed, step)[start:], start):
        zero_grad(learner)
        metrics = accumulate(learner, batch, signals, credit, rows, poll)
        limit = learner.update.max_kl
        if limit is not None and number and metrics["kl/old"] > limit:
            return  # the policy is already that far from the one that sampled
        head = learner.critic if learner.critic and learner.critic.shared else None
        if head:
            metrics["value/grad_norm"] = ready_critic(head, learner.backend)
        norm, rate = ready(
            learner.backend, learner.optimizer, learner.optimization, learner.updates, learner.total_updates
        )
        learner.optimizer.step()  # both gradients are finite: nothing stands between the two steps
        learner.updates += 1
        if head:
            head.optimizer.step()
            head.updates += 1
        yield metrics | {"grad_norm": norm, "lr": rate}


def zero_grad(learner: Learner) -> None:
    """Forget the gradients of policy and value head."""
    learner.optimizer.zero_grad(set_to_none=True)
    if learner.critic:
        learner.critic.optimizer.zero_grad(set_to_none=True)


def ready(
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


def ready_critic(critic: CriticLearner, backend: Backend) -> float:
    """The same for the critic's next optimizer step; returns the gradient norm."""
    settings = critic.options.optimizer
    return ready(backend, critic.optimizer, settings, critic.updates, critic.total_updates)[0]


def plan(batch: Batch, update: Update, seed: int, step: int) -> list[Tensor]:
    """Rows [M] of each optimizer step: every epoch a fresh permutation of the prompts, cut into `minibatches`.

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
    rows, count, states = _counted(learner, batch, credit, rows)
    shared = learner.critic is not None and learner.critic.shared
    sums: dict[str, Tensor] = {}
    moments: list[credits.Moments] = []
    forwarded, before, worst = 0, None, batch.logp_rollout.new_zeros(())
    needed = int(batch.mask[rows].sum()) + int(batch.prompt_lengths[batch.group[rows].unique()].sum())
    for micro, part in parts(learner.policy, batch, rows, learner.update):
        poll()
        logp, entropy, *values = learner.policy(part, value=shared)
        known = pick(signals, micro, part)
        if credit is None:
            known = replace(known, value=values[0].detach())
            given = credits.make(learner, part, known)
            moments.append(credits.moments(given, known, part.mask))
        else:
            given = pick(credit, micro, part)
        losses, metrics = token_losses(learner, part, known, given, logp, entropy, *values)
        worst = torch.maximum(worst, mismatch.worst(part, logp.detach() if known.logp_old is None else known.logp_old))
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
        if part.prefix and part.prefix is not before:
            before, forwarded = part.prefix, forwarded + part.prefix.length
    sums |= {"tokens/forwarded": torch.tensor(forwarded), "tokens/needed": torch.tensor(needed)}
    found, of_credit = credits.whole(learner.backend, credits.together(moments), sums)
    made = credits.metrics(of_credit) if of_credit else {}
    counts = {name: int(found.pop(name)) for name in ("tokens/forwarded", "tokens/needed")}
    found = mismatch.finished(found, learner.update)
    found["mismatch/worst"] = learner.backend.maximum(worst, "the worst token")
    return found | made | counts


def _counted(learner: Learner, batch: Batch, credit: Credit | None, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of the rows [M] of an optimizer step: those that carry any loss, the one denominator, and the sampled tokens of
    the carrying ones, both over all ranks.

    Where no rank has a carrying row the first row of the step is taken: gradients are then zeros.
    """
    objective = learner.objective
    denominator = F.normalize.count(batch.mask[rows], objective.options.denominator, objective.constant_length)
    kept = carrying(learner, batch, credit, rows)
    own = [denominator, F.normalize.count(batch.mask[kept], "token"), denominator.new_tensor(len(kept))]
    count, states, carry = learner.backend.sum(torch.stack(own), "denominators").unbind()
    if carry:
        return kept, count, states
    number = sharding.row_numbers(batch)[0][rows].tolist()
    lowest = learner.backend.ranks.gather(min(number, default=None), "the first row")
    first = min(n for n in lowest if n is not None)
    kept = rows[:1] if first in number[:1] else rows[:0]
    return kept, count, learner.backend.sum(F.normalize.count(batch.mask[kept], "token"), "denominators")


def carrying(learner: Learner, batch: Batch, credit: Credit | None, rows: Tensor) -> Tensor:
    """Those of the rows [M] that carry any loss: all with an advantage that is not exactly 0, and all where something
    else is learned from or measured on every row (KL, values)."""
    shared = learner.critic is not None and learner.critic.shared
    algorithm = learner.objective.algorithm
    everywhere = learner.objective.kl.in_loss or shared or learner.update.max_kl is not None
    if credit is None or everywhere or not algorithm.zero_without_advantage:
        return rows
    return rows[torch.where(batch.mask, credit.advantage, 0)[rows].any(dim=1)]


def parts(module: nn.Module, batch: Batch, rows: Tensor, update: Update) -> Iterator[tuple[Tensor, Batch]]:
    """The micro-batches of some rows: their row numbers [m], and the batch they make.

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
    """Whether a policy or critic, prepared by the backend or not, forwards each prompt once."""
    return bool(getattr(module, "module", module).share_prompts)


def pick(values, rows: Tensor, part: Batch):
    """The [B, C] tensors of a Signals or Credit for some rows, trimmed like `part`."""
    width = part.tokens.shape[1]
    picked = {f.name: getattr(values, f.name) for f in fields(values)}
    return replace(values, **{k: v[rows, :width] for k, v in picked.items() if isinstance(v, Tensor)})


def token_losses(
    learner: Learner,
    batch: Batch,
    signals: Signals,
    credit: Credit,
    logp: Tensor,
    entropy: Tensor,
    value: Tensor | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The unreduced losses [B, C] of one micro-batch ("policy", and a shared critic's "value"), and what to log."""
    objective, critic = learner.objective, learner.critic
    old = logp.detach() if signals.logp_old is None else signals.logp_old
    signals = replace(signals, logp_old=old)
    token_loss = objective.algorithm.objective(logp, entropy, batch, signals, credit)
    loss, metrics = token_loss.loss, dict(token_loss.metrics)
    weight, found = mismatch.of_tokens(batch, old, learner.update)
    loss, metrics = loss if weight is None else weight * loss, metrics | found
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
    """The share of `lr` used by optimizer step `number` (from 0) of `total`: linear warm-up, then the schedule."""
    if number < optimization.warmup_steps:
        return (number + 1) / optimization.warmup_steps
    if optimization.schedule == "constant":
        return 1.0
    done = (number - optimization.warmup_steps) / max(1, total - optimization.warmup_steps)
    if optimization.schedule == "linear":
        return max(0.0, 1.0 - done)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
