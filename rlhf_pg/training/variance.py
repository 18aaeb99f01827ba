"""`rlhf-pg variance`: the noise of each gradient estimator of the ladder, on the same rollouts at the same weights.

Trains some steps in memory, then freezes the weights, samples groups, and takes each group's gradient once by every
estimator: the real algorithm records, all with the "constant" denominator. docs/variance.md says how to read it.
Nothing is written to run.dir.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from rich.progress import Progress as Bar
from torch import Tensor

from rlhf_pg import functional as F
from rlhf_pg.algorithms.base import BoundAlgorithm, resolve
from rlhf_pg.config import ResolvedRecipe
from rlhf_pg.data import collate
from rlhf_pg.display.live import LiveView
from rlhf_pg.distributed.interrupt import StopRequest
from rlhf_pg.training import credit as credits
from rlhf_pg.training import loop
from rlhf_pg.training.gradient_step import select_rows, shares_prompts
from rlhf_pg.training.learner import Learner
from rlhf_pg.training.resume import Progress
from rlhf_pg.training.setup import Session
from rlhf_pg.training.variance_statistics import Bootstrap, Sketch, coinciding, summaries
from rlhf_pg.types import Batch, Credit, Signals

MEMORY = 2**30  # bytes that all gradients may take; larger ones are sketched


@dataclass(frozen=True)
class Estimator:
    """An algorithm record with options, and what the theory says of it."""

    name: str
    algorithm: str
    options: dict[str, Any]
    rung_above: str | None = None  # the estimator it is meant to improve on
    bias: str = ""  # "" = unbiased
    same_scale: bool = True  # False: its variance cannot be compared with the others'


LADDER = (
    Estimator("trajectory return", "reinforce", {"returns": "trajectory"}),
    Estimator("reward-to-go", "reinforce", {}, "trajectory return"),
    Estimator("leave-one-out", "reinforce_baseline", {"baseline": "leave_one_out"}, "reward-to-go"),
    Estimator(
        "group mean", "reinforce_baseline", {"baseline": "group_mean"}, "reward-to-go", "(G - 1) / G of the gradient"
    ),
    Estimator("critic", "reinforce_baseline", {"baseline": "critic"}, "reward-to-go"),
    Estimator("GAE 0.95", "ppo", {"lam": 0.95, "standardise": False}, "critic", "wrong where the critic is"),
    Estimator("RLOO", "rloo", {}, "trajectory return"),
    Estimator("GRPO", "grpo", {}, bias="prompts weighed by 1/std", same_scale=False),
)


@dataclass(frozen=True)
class Rung:
    """An estimator that this run can have, its options bound."""

    estimator: Estimator
    record: BoundAlgorithm


def measure(session: Session, after: int, groups: int) -> dict[str, Any]:
    """Train `after` steps, then measure at those weights. Return what variance.json holds."""
    recipe = session.recipe
    rungs, notes = ladder(session.learner, recipe.rollout.samples_per_prompt)
    run = loop.TrainingRun(session, _NoRunDir(), LiveView(after, "off"), StopRequest(), Progress())  # pyright: ignore[reportArgumentType]
    with Bar() as bar:
        steps = bar.add_task(f"training {after} steps", total=after)
        for _ in range(after):
            loop.train_step(run)
            bar.advance(steps)
        task = bar.add_task(f"gradients of {groups} groups", total=groups)
        sketches, facts = gradients(run, rungs, groups, lambda: bar.advance(task))
    if recipe.kl.in_loss:
        notes.append("kl.placement=loss: that term is the same for every estimator and is left out")
    return _result(recipe, after, rungs, sketches, facts, notes)


def ladder(learner: Learner, samples: int) -> tuple[list[Rung], list[str]]:
    """Return the estimators that this learner can compute, and a note on each other one."""
    rungs, notes = [], []
    for estimator in LADDER:
        record = resolve(estimator.algorithm).bind({**estimator.options, "denominator": "constant"})
        if record.needs_critic and learner.critic is None:
            notes.append(f"{estimator.name} is left out: the recipe's algorithm has no critic")
        elif record.min_group > samples:
            notes.append(f"{estimator.name} is left out: rollout.samples_per_prompt is {samples}")
        else:
            rungs.append(Rung(estimator, record))
    return rungs, notes


# ---- the same rollouts, each estimator's gradients


def gradients(
    run: loop.TrainingRun, rungs: Sequence[Rung], groups: int, advance: Callable[[], None] = lambda: None
) -> tuple[Tensor, dict[str, Any]]:
    """Return the gradients of fresh groups at the present weights [E, groups, d], and their rollouts' figures.

    Gradients of more than MEMORY bytes are sketched. The data cursor goes back to where it was. `advance` is called
    after every group.
    """
    session, learner = run.session, run.session.learner
    cursor, samples = session.sampler.state(), run.recipe.rollout.samples_per_prompt
    device, width = learner.backend.device, max(1, MEMORY // (4 * len(rungs) * groups))
    sketch = Sketch(sum(p.numel() for p in learner.parameters), width, device=device)
    sketches = torch.zeros(len(rungs), groups, sketch.width, device=device)
    measuring = replace(
        run, session=replace(session, learner=_with_values(learner)), progress=Progress(step=run.progress.step)
    )
    moments, done, rows, reward, paid = [], 0, 0, 0.0, 0.0
    try:
        while done < groups:
            pending = loop.roll_out(measuring)
            measuring.progress.step += 1
            batch, signals = pending.batch, pending.signals
            rung_credits = [rung.record.credit(batch, signals) for rung in rungs]
            used = batch.group < groups - done  # [B]
            scored = batch.mask & used[:, None]  # [B, C]
            moments += [credits.moments(c, signals, scored) for c in rung_credits if c.returns is not None][:1]
            rows, reward = rows + int(used.sum()), reward + float(batch.reward[used].sum())
            paid += float(signals.token_reward[scored].sum())
            for group in range(min(len(batch.prompt_lengths), groups - done)):
                estimates = group_gradients(learner, batch, signals, rungs, rung_credits, group, samples)
                for number, gradient in enumerate(estimates):
                    sketches[number, done] = sketch(gradient)
                done += 1
                advance()
    finally:
        session.sampler.load_state(cursor)
    critic = credits.metrics(credits.add(moments)) if moments else {}
    return sketches, {
        "rollouts": rows,
        "reward/mean": reward / rows,
        "reward/kl_penalty": (reward - paid) / rows,
        "value/explained_variance": critic.get("value/explained_variance"),
        "prompts_per_step": run.recipe.rollout.prompts_per_step,
        "parameters": sketch.length,
        "kept": sketch.width,
    }


def group_gradients(
    learner: Learner,
    batch: Batch,
    signals: Signals,
    rungs: Sequence[Rung],
    rung_credits: Sequence[Credit],
    group: int,
    samples: int,
) -> Iterator[Tensor]:
    """Yield the gradient of one group by each estimator, flat [n]; the mean over groups is a step's gradient.

    The denominator is that of `samples` samples * max_new_tokens, also where some are excluded. The ratio to the policy
    that sampled is 1. One forward serves all estimators, unless the group is more than a micro-batch.
    """
    max_length, parameters = learner.objective.max_length, learner.parameters
    rows = (batch.group == group).nonzero().squeeze(1)
    count = torch.tensor(samples * max_length)
    pieces = collate.micro_batches(batch, rows, learner.update.positions, shares_prompts(learner.policy))
    micros = [(piece, collate.select(batch, piece)) for piece in chain.from_iterable(pieces)]
    only_forward = learner.policy(micros[0][1]) if len(micros) == 1 else None
    sizes = [p.numel() for p in parameters]
    for rung, credit in zip(rungs, rung_credits, strict=True):
        flat = torch.zeros(sum(sizes), device=batch.tokens.device)
        for micro, part in micros:
            logp, entropy = only_forward or learner.policy(part)
            on_policy = replace(select_rows(signals, micro, part), logp_old=logp.detach())
            loss = rung.record.objective(logp, entropy, part, on_policy, select_rows(credit, micro, part)).loss
            total = F.normalize.total(loss, part.mask, "constant", count, max_length)
            of_parameters = torch.autograd.grad(total, parameters, retain_graph=bool(only_forward), allow_unused=True)
            for place, gradient in zip(flat.split(sizes), of_parameters, strict=True):
                if gradient is not None:
                    place += gradient.reshape(-1)
        yield flat


def _with_values(learner: Learner) -> Learner:
    """Return the learner with a shared critic's values among the signals, by a pass of their own."""
    values = "policy" if learner.passes.values == "update" else learner.passes.values
    copied = replace(learner, passes=replace(learner.passes, values=values))
    copied.kl_coefficient = learner.kl_coefficient  # as it has adapted: `replace` starts it again
    return copied


class _NoRunDir:
    """Stands in for the run's folder: samples are not written."""

    def write_rollouts(self, step: int, rows: list[dict[str, Any]]) -> None: ...


# ---- their statistics


def _result(
    recipe: ResolvedRecipe, after: int, rungs: Sequence[Rung], sketches: Tensor, facts: dict[str, Any], notes: list[str]
) -> dict[str, Any]:
    names = [rung.estimator.name for rung in rungs]
    bootstrap = Bootstrap(sketches)
    unbiased = [i for i, rung in enumerate(rungs) if not rung.estimator.bias]
    reference = min(unbiased, key=lambda i: bootstrap.point[i][0])
    by_rung = zip(rungs, summaries(sketches, facts["prompts_per_step"], reference, bootstrap), strict=True)
    table, steps = [], []
    for number, (rung, summary) in enumerate(by_rung):
        estimator = rung.estimator
        table.append(
            {
                "name": estimator.name,
                "algorithm": estimator.algorithm,
                "options": rung.record.options.model_dump(mode="json"),
                "bias": estimator.bias,
                "same_scale": estimator.same_scale,
                **vars(summary),
                "to_reward_to_go": bootstrap.ratio(number, names.index("reward-to-go"))
                if estimator.same_scale
                else None,
                "to_least_noisy": None if estimator.bias else bootstrap.ratio(number, reference),
            }
        )
        if estimator.rung_above and (ratio := bootstrap.ratio(number, names.index(estimator.rung_above))):
            steps.append({"from": estimator.rung_above, "to": estimator.name, "ratio": ratio[0], "interval": ratio[1]})
    for a, b, difference in coinciding(sketches):
        notes.append(
            f"{names[a]} and {names[b]} coincide here: their gradients differ by {difference:.1e} of their size"
        )
    if facts["kept"] < facts["parameters"]:
        error = (2 / facts["kept"]) ** 0.5
        notes.append(
            f"gradients of {facts['parameters']:,} numbers are kept as random projections to {facts['kept']:,}: "
            f"unbiased, standard error at most {error:.1%} of the variance"
        )
    return {
        "run": str(recipe.run.dir),
        "after": after,
        "groups": sketches.shape[1],
        **facts,
        "large_sample_gradient": names[reference],
        "estimators": table,
        "rungs": steps,
        "notes": notes,
        "recipe": recipe.written.model_dump(mode="json"),
    }
