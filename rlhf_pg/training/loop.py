"""One training step: roll out, score, assign credit, update, measure. It knows no algorithm by name."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rlhf_pg import functional as F
from rlhf_pg.config import ResolvedRecipe
from rlhf_pg.data import collate, sharding
from rlhf_pg.display.live import LiveView, Phase
from rlhf_pg.display.notices import Watch
from rlhf_pg.distributed import checkpoint
from rlhf_pg.distributed.interrupt import StopRequest
from rlhf_pg.distributed.ranks import Ranks
from rlhf_pg.rollout import collect
from rlhf_pg.storage.run_dir import RunDir
from rlhf_pg.trackers.trackers import Trackers
from rlhf_pg.training import critic_step, gradient_step, packing_check, prefetch, trust_region_step
from rlhf_pg.training.credit import assign
from rlhf_pg.training.evaluate import evaluate
from rlhf_pg.training.learner import Learner
from rlhf_pg.training.metrics import judged_groups, mean_of, rollout_metrics, sample_rows, with_advantages
from rlhf_pg.training.precompute import signals
from rlhf_pg.training.resume import Pending, Progress, Snapshot, snapshot
from rlhf_pg.training.setup import Session
from rlhf_pg.types import Credit, Prompt, Rollout, Sampling

LEARNED = ("model", "optimizer", "critic", "critic_optimizer")  # groups of a checkpoint
UPDATES = {"gradient": gradient_step.optimizer_steps, "trust_region": trust_region_step.natural_gradient_step}


@dataclass
class TrainingRun:
    """One session of training: its live parts, where it is, and where it writes."""

    session: Session
    folder: RunDir
    view: LiveView
    stop: StopRequest
    progress: Progress
    times: dict[str, float] = field(default_factory=dict)  # seconds of the current step by phase
    sample_rows: list[dict[str, Any]] = field(default_factory=list)  # of the current step, to look at
    failure: str = ""  # why a reward function failed on the first such sample of the current step
    watch: Watch = field(default_factory=Watch)
    trackers: Trackers = field(default_factory=Trackers)
    packing_checked: bool = False  # whether shared prompts have been compared with separate rows

    @property
    def recipe(self) -> ResolvedRecipe:
        return self.session.recipe

    @property
    def ranks(self) -> Ranks:
        return self.session.learner.backend.ranks

    def poll(self, *progress: int) -> None:
        """Leave promptly when asked to, else show progress. Called between decode steps and between micro-batches.

        What several ranks do together they leave at `agree` only.
        """
        if self.ranks.independent:
            self.stop.raise_if_requested()
        if progress:
            self.view.progress(*progress)

    def agree(self) -> None:
        """Leave on all ranks if one was asked to. Called on all of them between optimizer steps."""
        if self.ranks.size > 1:
            self.ranks.agree("whether to stop", stop=self.stop.reason)

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Show and time a part of the step."""
        self.view.phase(name)
        started = time.monotonic()
        yield
        self.times[f"time/{name}_s"] = self.times.get(f"time/{name}_s", 0.0) + time.monotonic() - started


def train_step(run: TrainingRun) -> dict[str, float]:
    """Take one rollout and the updates on it, and return the step's metrics."""
    session, progress = run.session, run.progress
    run.times = {}
    run.ranks.place = f"step {progress.step + 1}"
    started = time.monotonic()
    run.view.start_step(progress.step + 1)
    if progress.pending is None:
        progress.pending = roll_out(run)
    pending, learner = progress.pending, session.learner
    with run.phase("update"):
        credit = assign(learner, pending.batch, pending.signals)
        _log_advantages(run, pending, credit)
        learn(run, pending, credit)
        session.push_weights()
    update_metrics = mean_of(pending.updates)
    progress.step += 1
    progress.samples += int(pending.metrics["samples"])
    progress.tokens += int(pending.metrics["tokens/prompts"] + pending.metrics["tokens/generated"])
    progress.pending = None
    return {
        "step": progress.step,
        **pending.metrics,
        **(credit.metrics if credit else {}),
        **update_metrics,
        "update/steps": len(pending.updates),
        **mean_of(pending.critic_updates),
        **_adapt_kl(learner, update_metrics, int(pending.metrics["samples"])),
        **run.times,
        "time/step_s": time.monotonic() - started,
        "samples/total": progress.samples,
        "tokens/total": progress.tokens,
        "memory/peak_gib": learner.backend.peak_memory_gib(),
    }


def roll_out(run: TrainingRun) -> Pending:
    """Sample and score one step's groups. Interrupted, it leaves the data cursor where it was."""
    session, ranks = run.session, run.ranks
    sampling = session.sampling(run.progress.step + 1)
    with prefetch.next_prompts(session) as prompts:
        rollouts, logged, batch_rows = _sample(run, ranks.share(prompts), sampling)
        judged = judged_groups(ranks, rollouts, sampling.samples)
        with run.phase("update"):
            group_sizes = [sum(sample.reward is not None for sample in group) for group in judged]
            batch = sharding.shard(rollouts, group_sizes, ranks.rank, ranks.size)
            batch = collate.to(batch, session.learner.backend.device)
            if not run.packing_checked:
                packing_check.verify(session, batch, run.view.message)
                run.packing_checked = True
            signals_of_batch = signals(session.learner, session.reference, batch, run.poll)
        samples = [sample for group in judged for sample in group]
        run.failure = next((sample.failure for sample in samples if sample.failure), "")
        figures = rollout_metrics(samples) | {"samples": len(samples)}
        return Pending(batch, signals_of_batch, figures, samples=logged, batch_rows=batch_rows)


def _sample(
    run: TrainingRun, prompts: list[Prompt], sampling: Sampling
) -> tuple[list[Rollout], list[dict[str, Any]], list[int | None]]:
    """Return the scored completions of this rank's prompts; of those written to be looked at, rows and places."""
    session = run.session
    with run.ranks.independently("rollouts"), session.learner.backend.autocast():
        rollouts = collect.rollouts(
            session.engine,
            session.scorer,
            session.tokenizer,
            prompts,
            sampling,
            progress=run.poll,
            poll=run.poll,
            part=run.phase,
            sampled=lambda: run.times.update(prefetch.start(session, sampling)),
        )
        rows, batch_rows = sample_rows(sampling.step, rollouts, run.recipe.log.samples)
        run.folder.write_rollouts(sampling.step, rows)
    return rollouts, rows, batch_rows


def _log_advantages(run: TrainingRun, pending: Pending, credit: Credit | None) -> None:
    """Write the samples again, with what each teaches, where that is known before the update."""
    run.sample_rows = pending.samples
    with run.ranks.independently("rollouts"):
        if credit is not None and run.ranks.first:  # the rows are the first rank's
            rows = with_advantages(pending.samples, pending.batch_rows, credit.advantage, pending.batch.mask)
            run.sample_rows = rows
            run.folder.write_rollouts(run.progress.step + 1, rows)


def learn(run: TrainingRun, pending: Pending, credit: Credit | None) -> None:
    """Take the optimizer steps on one rollout that `pending` does not have yet: the policy's, then the critic's own."""
    learner, step = run.session.learner, run.progress.step
    rollout = pending.batch, pending.signals, credit
    if learner.critic is None or step >= learner.critic.options.warmup:
        update = UPDATES[learner.objective.algorithm.update]
        for metrics in update(learner, *rollout, step, len(pending.updates), run.poll):
            pending.updates.append(metrics)
            run.agree()
    for metrics in critic_step.optimizer_steps(learner, *rollout, step, len(pending.critic_updates), run.poll):
        pending.critic_updates.append(metrics)
        run.agree()


def _adapt_kl(learner: Learner, update_metrics: dict[str, float], samples: int) -> dict[str, float]:
    """Move the KL coefficient towards the one that holds `kl.target`; return the one that the step was taken with."""
    kl, used = learner.objective.kl, learner.kl_coefficient
    if kl.target is None:
        return {}
    if "kl/ref" in update_metrics:  # not while only the critic learns
        learner.kl_coefficient = F.kl.adapt(used, update_metrics["kl/ref"], kl.target, samples, kl.horizon)
    return {"kl/coefficient": used}


def measure(run: TrainingRun) -> dict[str, float]:
    """Evaluate the current weights on the held-out problems; log each problem, and return the figures."""
    with run.phase("eval"):
        evaluation = evaluate(run.session, run.poll, run.poll)
    with run.ranks.independently("the evaluation's record"):
        run.folder.write_evaluation(run.progress.step, evaluation.problems)
    return evaluation.metrics


def record(run: TrainingRun, metrics: dict[str, float]) -> None:
    """Write one step's line, show it, pass it to the trackers, and warn of what it shows."""
    run.folder.append_metrics(metrics)
    run.trackers.log(metrics, run.sample_rows, run.progress.step)
    run.view.finish_step(metrics, run.sample_rows)
    if not run.ranks.first:
        return
    if metrics.get("mismatch/alarm"):
        apart = f"engine and trainer are apart, mismatch/kl {metrics['mismatch/kl']:.3g}"
        run.view.warning(f"step {run.progress.step}: {apart}")
    for notice in run.watch.step(metrics, run.failure):
        run.view.warning(notice.text)


def save(run: TrainingRun) -> None:
    """Write a checkpoint of everything. Raises FloatingPointError, on all ranks, if what is learned is not finite."""
    run.progress.elapsed_s = run.folder.elapsed_s
    saved = snapshot(run.session, run.progress)
    diverged = next(filter(None, run.ranks.gather(_not_finite(saved), "whether all is finite")), "")
    if diverged:
        raise FloatingPointError(f"{diverged} is not finite after step {run.progress.step}: no checkpoint was written")
    folder, keep = run.folder.checkpoints, run.recipe.checkpoint.keep
    checkpoint.save(run.ranks, folder, run.progress.step, saved.common, saved.of_rank, keep)


def _not_finite(saved: Snapshot) -> str:
    """Return the name of a learned tensor, or one of an optimizer, that is not finite; "" if all are."""
    for tensors, _ in (saved.common, saved.of_rank):
        for group, named in tensors.items():
            for name, tensor in named.items() if group in LEARNED else ():
                if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                    return f"{group} {name}"
    return ""
