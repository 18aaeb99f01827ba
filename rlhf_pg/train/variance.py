"""`rlhf-pg variance`: the noise of each gradient estimator of the ladder, on the same rollouts at the same weights.

Trains some steps in memory, then freezes the weights, samples groups, and takes each group's gradient once by every
estimator: the real algorithm records, all with the "constant" denominator. docs/variance.md says how to read it.
Nothing is written to run.dir.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
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
from rlhf_pg.report import variance
from rlhf_pg.train import credit as credits
from rlhf_pg.train import loop
from rlhf_pg.train.gradient_step import pick, shares_prompts
from rlhf_pg.train.learner import Learner
from rlhf_pg.train.resume import Progress
from rlhf_pg.train.setup import Session, build, join
from rlhf_pg.train.variance_statistics import Bootstrap, Sketch, same, summaries
from rlhf_pg.types import Batch, Credit, Signals

MEMORY = 2**30  # bytes that the kept gradients may take; larger ones are sketched


@dataclass(frozen=True)
class Estimator:
    """An algorithm record with options, and what is known of it beforehand."""

    name: str
    algorithm: str
    options: dict[str, Any]
    rung_above: str | None = None  # the estimator it is meant to improve on
    bias: str = ""  # "" = unbiased
    same_scale: bool = True  # False: its variance says nothing beside the others'


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
    """An estimator that this run can have, with its record."""

    estimator: Estimator
    record: BoundAlgorithm


def run(recipe: ResolvedRecipe, after: int, groups: int, out: Path) -> int:
    """Measure, print a table, write variance.json and variance.png to `out` (see `variance_arguments.checked`)."""
    sections = {
        "log": recipe.log.model_copy(update={"trackers": []}),
        "rollout": recipe.rollout.model_copy(update={"overlap": False}),  # the estimators are compared on-policy
    }
    session = build(
        recipe.changed(**sections), backend=join(recipe, trackers=False).require_one_process("rlhf-pg variance")
    )
    try:
        result = measure(session, after, groups)
    finally:
        session.close()
    variance.write(result, out)
    return 0


def measure(session: Session, after: int, groups: int) -> dict[str, Any]:
    """Train `after` steps, then measure at those weights: what variance.json holds."""
    recipe = session.recipe
    rungs, notes = ladder(session.learner, recipe.rollout.samples_per_prompt)
    made = loop.TrainingRun(session, _Nowhere(), LiveView(after, "off"), StopRequest(), Progress())  # pyright: ignore[reportArgumentType]
    with Bar() as bar:
        steps = bar.add_task(f"training {after} steps", total=after)
        for _ in range(after):
            loop.train_step(made)
            bar.advance(steps)
        task = bar.add_task(f"gradients of {groups} groups", total=groups)
        kept, facts = gradients(made, rungs, groups, lambda: bar.advance(task))
    if recipe.kl.coefficient > 0 and recipe.kl.placement == "loss":
        notes.append("kl.placement=loss: that term is the same for every estimator and is left out")
    return _result(recipe, after, rungs, kept, facts, notes)


def ladder(learner: Learner, samples: int) -> tuple[list[Rung], list[str]]:
    """The estimators that this learner has what it takes for, and why others are left out."""
    rungs, notes = [], []
    for estimator in LADDER:
        record = resolve(estimator.algorithm)
        bound = record.bind({**estimator.options, "denominator": "constant"})
        if bound.needs_critic and learner.critic is None:
            notes.append(f"{estimator.name} is left out: the recipe's algorithm has no critic")
        elif bound.min_group > samples:
            notes.append(f"{estimator.name} is left out: rollout.samples_per_prompt is {samples}")
        else:
            rungs.append(Rung(estimator, bound))
    return rungs, notes


# ---- the same rollouts, each estimator's gradients


def gradients(
    run: loop.TrainingRun, rungs: Sequence[Rung], groups: int, advance: Callable[[], None] = lambda: None
) -> tuple[Tensor, dict[str, Any]]:
    """The gradients of fresh groups at the present weights [E, groups, d], and their rollouts' figures.

    The data cursor goes back to where it was.
    """
    session, learner = run.session, run.session.learner
    per_step, samples = run.recipe.rollout.prompts_per_step, run.recipe.rollout.samples_per_prompt
    cursor, step = session.sampler.state(), run.progress.step
    sketch = Sketch(
        sum(p.numel() for p in learner.parameters), _room(len(rungs), groups), device=learner.backend.device
    )
    kept = torch.zeros(len(rungs), groups, sketch.kept, device=learner.backend.device)
    looking = replace(run, session=replace(session, learner=_all_signals(learner)), progress=Progress(step=step))
    moments, done, rows, reward, paid = [], 0, 0, 0.0, 0.0
    try:
        while done < groups:
            pending = loop.roll_out(looking)
            looking.progress.step += 1
            batch, signals = pending.batch, pending.signals
            given = [rung.record.credit(batch, signals) for rung in rungs]
            used = batch.group < groups - done  # [B]
            scored = batch.mask & used[:, None]  # [B, C]
            moments += [credits.moments(c, signals, scored) for c in given if c.returns is not None][:1]
            rows, reward = rows + int(used.sum()), reward + float(batch.reward[used].sum())
            paid += float(signals.token_reward[scored].sum())
            for group in range(min(len(batch.prompt_lengths), groups - done)):
                found = group_gradients(learner, batch, signals, rungs, given, group, samples)
                for number, gradient in enumerate(found):
                    kept[number, done] = sketch(gradient)
                done += 1
                advance()
    finally:
        session.sampler.load_state(cursor)
    critic = credits.metrics(credits.together(moments)) if moments else {}
    facts = {
        "rollouts": rows,
        "reward/mean": reward / rows,
        "reward/kl_penalty": (reward - paid) / rows,
        "value/explained_variance": critic.get("value/explained_variance"),
        "prompts_per_step": per_step,
        "parameters": sketch.length,
        "kept": sketch.kept,
    }
    return kept, facts


def group_gradients(
    learner: Learner,
    batch: Batch,
    signals: Signals,
    rungs: Sequence[Rung],
    given: Sequence[Credit],
    group: int,
    samples: int,
) -> Iterator[Tensor]:
    """The gradient of one group by each estimator, flat [n]; the mean over groups is a step's gradient.

    The denominator is that of a whole group, `samples` * max_new_tokens, also where samples are excluded. The ratio to
    the policy that sampled is 1. One forward serves all estimators, unless the group is more than a micro-batch.
    """
    longest, parameters = learner.objective.max_length, learner.parameters
    rows = (batch.group == group).nonzero().squeeze(1)
    count = torch.tensor(samples * longest)
    pieces = collate.micro_batches(batch, rows, learner.update.positions, shares_prompts(learner.policy))
    micros = [(piece, collate.select(batch, piece)) for piece in chain.from_iterable(pieces)]
    shared = learner.policy(micros[0][1]) if len(micros) == 1 else None
    for rung, credit in zip(rungs, given, strict=True):
        flat = torch.zeros(sum(p.numel() for p in parameters), device=batch.tokens.device)
        for micro, part in micros:
            logp, entropy = shared or learner.policy(part)
            known = replace(pick(signals, micro, part), logp_old=logp.detach())
            loss = rung.record.objective(logp, entropy, part, known, pick(credit, micro, part)).loss
            total = F.normalize.total(loss, part.mask, "constant", count, longest)
            found = torch.autograd.grad(total, parameters, retain_graph=shared is not None, allow_unused=True)
            for place, gradient in zip(flat.split([p.numel() for p in parameters]), found, strict=True):
                if gradient is not None:
                    place += gradient.reshape(-1)
        yield flat


def _all_signals(learner: Learner) -> Learner:
    """Return the same learner, but for a shared critic's values: they are among the signals, by a pass of their own."""
    values = "policy" if learner.passes.values == "update" else learner.passes.values
    made = replace(learner, passes=replace(learner.passes, values=values))
    made.kl_coefficient = learner.kl_coefficient
    return made


def _room(estimators: int, groups: int) -> int:
    return max(1, MEMORY // (4 * estimators * groups))


class _Nowhere:
    """Takes the place of the run's folder: samples are not written."""

    def write_rollouts(self, step: int, rows: list[dict[str, Any]]) -> None: ...


# ---- what is said of them


def _result(
    recipe: ResolvedRecipe, after: int, rungs: Sequence[Rung], kept: Tensor, facts: dict[str, Any], notes: list[str]
) -> dict[str, Any]:
    names = [rung.estimator.name for rung in rungs]
    bootstrap = Bootstrap(kept)
    sound = [i for i, rung in enumerate(rungs) if not rung.estimator.bias]
    reference = min(sound, key=lambda i: bootstrap.point[i][0])
    made = summaries(kept, facts["prompts_per_step"], reference, bootstrap)
    to_go = names.index("reward-to-go")
    table, steps = [], []
    for number, (rung, summary) in enumerate(zip(rungs, made, strict=True)):
        estimator = rung.estimator
        ratio = bootstrap.ratio(number, to_go) if estimator.same_scale else None
        options = rung.record.options.model_dump(mode="json")
        about = {"name": estimator.name, "algorithm": estimator.algorithm, "options": options, "bias": estimator.bias}
        table.append(about | {"same_scale": estimator.same_scale} | vars(summary) | {"to_reward_to_go": ratio})
        if estimator.rung_above and (ratio := bootstrap.ratio(number, names.index(estimator.rung_above))):
            steps.append({"from": estimator.rung_above, "to": estimator.name, "ratio": ratio[0], "interval": ratio[1]})
    for a, b, difference in same(kept):
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
        "groups": kept.shape[1],
        **facts,
        "large_sample_gradient": names[reference],
        "estimators": table,
        "rungs": steps,
        "notes": notes,
        "recipe": recipe.written.model_dump(mode="json"),
    }
