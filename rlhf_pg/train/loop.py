"""The training loop: roll out, score, assign credit, update, measure, save. It knows no algorithm by name."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from rlhf_pg import config
from rlhf_pg import functional as F
from rlhf_pg.config import Recipe
from rlhf_pg.data import collate, sharding
from rlhf_pg.display.live import LiveView, Phase
from rlhf_pg.distributed.backend import Backend
from rlhf_pg.distributed.interrupt import Stopped, StopRequest
from rlhf_pg.distributed.ranks import Ranks
from rlhf_pg.errors import RunError
from rlhf_pg.estimate.estimate import show
from rlhf_pg.preflight import checks
from rlhf_pg.rollout import collect
from rlhf_pg.storage import checkpoint
from rlhf_pg.storage.run_dir import RunDir
from rlhf_pg.train import critic_step, gradient_step, packing_check, prefetch, trust_region_step
from rlhf_pg.train.credit import assign
from rlhf_pg.train.evaluate import evaluate
from rlhf_pg.train.export import export, headline
from rlhf_pg.train.learner import Learner
from rlhf_pg.train.metrics import judged_groups, mean_of, rollout_metrics, sample_rows
from rlhf_pg.train.opening import open_folder, resumed
from rlhf_pg.train.precompute import signals
from rlhf_pg.train.resume import Pending, Progress, refuse_another_run, snapshot
from rlhf_pg.train.setup import Session, build, join
from rlhf_pg.types import Credit, Prompt, Rollout, Sampling

UPDATES = {"gradient": gradient_step.update, "trust_region": trust_region_step.update}


@dataclass
class Run:
    """One training session: its live parts, where it is, and where it writes."""

    session: Session
    folder: RunDir
    view: LiveView
    stop: StopRequest
    progress: Progress
    times: dict[str, float] = field(default_factory=dict)  # seconds of the current step by phase
    samples: list[dict[str, Any]] = field(default_factory=list)  # rows of the current step, to look at
    verified: bool = False  # whether shared prompts have been compared with whole rows

    @property
    def recipe(self) -> Recipe:
        return self.session.recipe

    @property
    def ranks(self) -> Ranks:
        return self.session.learner.backend.ranks

    def poll(self, *done: int) -> None:
        """Called between decode steps and micro-batches: leaves promptly when asked to, else shows progress.

        Several ranks leave what they do together at `agree` only.
        """
        if self.ranks.alone:
            if self.ranks.stop_asked():
                self.stop.request("another rank was asked to stop")
            self.stop.raise_if_requested()
        if done:
            self.view.progress(*done)

    def agree(self) -> None:
        """Called on all ranks between optimizer steps: all leave when one was asked to."""
        if self.ranks.size > 1:
            self.ranks.agree("whether to stop", stop=self.stop.reason)

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        self.view.phase(name)
        started = time.monotonic()
        yield
        self.times[f"time/{name}_s"] = self.times.get(f"time/{name}_s", 0.0) + time.monotonic() - started


def train(recipe: Recipe) -> int:
    """Run a recipe to its end, or to a SIGTERM, after which `run.resume=auto` continues it. Returns the exit status."""
    backend = join(recipe)
    try:
        return _train(recipe, backend)
    except BaseException as error:
        backend.ranks.failed(error)
        cause = backend.ranks.first_cause() if isinstance(error, RuntimeError) else ""
        if cause and not isinstance(error, RunError):  # a collective of DeepSpeed's that a lost rank broke
            raise RunError(cause) from error
        raise


def _train(recipe: Recipe, backend: Backend) -> int:
    ranks = backend.ranks
    with ExitStack() as stack:
        folder = stack.enter_context(open_folder(recipe, ranks))
        with ranks.apart("the recipe of the run"):
            if folder.resume_from:
                refuse_another_run(recipe, folder.path / "config.yaml")
        session = build(recipe, backend=backend)
        stack.callback(session.close)
        progress = resumed(session, folder)
        folder.write_text("config.yaml", config.dump(recipe))
        backend.start_trackers(recipe.log.project, recipe.run.dir.name, recipe.model_dump(mode="json"))
        live = recipe.log.live if ranks.first else "off"
        if live != "off":
            show(session.plan, Console())
        view = stack.enter_context(LiveView(recipe.run.steps, live))
        for note in session.notes:
            view.message(note)
        if recipe.run.preflight:
            with ranks.apart("preflight"):
                checks.preflight(session, view.message)
        stop = stack.enter_context(StopRequest())  # until here there is nothing to save: a signal just ends the process
        folder.continue_clock(progress.elapsed_s)
        return _guarded(Run(session, folder, view, stop, progress))


def _guarded(run: Run) -> int:
    """Run to the end; when stopped or broken, save first what was paid for. Returns the exit status."""
    try:
        _run(run)
    except Stopped:
        save(run)
        run.view.message(f"stopped at step {run.progress.step}; saved. Continue with run.resume=auto")
        return 130
    except Exception as error:
        together = run.ranks.failed(error)  # else the others are elsewhere, and a checkpoint takes all of them
        if together and (run.progress.step or run.progress.pending):
            try:
                save(run)
                run.view.message(f"failed after step {run.progress.step}; saved. Once mended, use run.resume=auto")
            except Exception as error:  # a full disk is often the very reason: the first cause is what is raised
                run.view.message(f"failed after step {run.progress.step}, and could not save: {error}")
        raise
    return 0


def _run(run: Run) -> None:
    """Measure, all steps, measure again, export."""
    recipe, progress = run.recipe, run.progress
    if run.session.eval_prompts and progress.before is None and not run.session.learner.updates:
        progress.before = measure(run)
        run.view.message(f"before: {headline(progress.before)}")
    while progress.step < recipe.run.steps:
        metrics = train_step(run)
        due = recipe.eval.every and progress.step % recipe.eval.every == 0 and progress.step < recipe.run.steps
        try:
            if due and run.session.eval_prompts:
                metrics |= {f"eval/{name}": value for name, value in measure(run).items()}
        finally:
            with run.ranks.apart("the step's record"):
                record(run, metrics)  # the step is done, whatever happens to its evaluation
        if recipe.checkpoint.every and progress.step % recipe.checkpoint.every == 0:
            prefetch.collect(run.session, run.poll)
            save(run)
    finish(run)


def train_step(run: Run) -> dict[str, float]:
    """One rollout and the updates on it."""
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
        learn(run, pending, credit)
        session.push_weights()
    updated = mean_of(pending.updates)
    progress.step += 1
    progress.samples += int(pending.metrics["samples"])
    progress.pending = None
    return {
        "step": progress.step,
        **pending.metrics,
        **(credit.metrics if credit else {}),
        **updated,
        "update/steps": len(pending.updates),
        **mean_of(pending.critic_updates),
        **_adapt_kl(learner, updated, int(pending.metrics["samples"])),
        **run.times,
        "time/step_s": time.monotonic() - started,
        "samples/total": progress.samples,
        "memory/peak_mb": learner.backend.peak_memory_mb(),
    }


def learn(run: Run, pending: Pending, credit: Credit | None) -> None:
    """The optimizer steps on one rollout, from where `pending` says they are: the policy's, then an own critic's."""
    learner, step, data = run.session.learner, run.progress.step, (pending.batch, pending.signals, credit)
    if learner.critic is None or step >= learner.critic.options.warmup:
        take = UPDATES[learner.objective.algorithm.update]
        for metrics in take(learner, *data, step, len(pending.updates), run.poll):
            pending.updates.append(metrics)
            run.agree()
    for metrics in critic_step.update(learner, *data, step, len(pending.critic_updates), run.poll):
        pending.critic_updates.append(metrics)
        run.agree()


def _adapt_kl(learner: Learner, updated: dict[str, float], samples: int) -> dict[str, float]:
    """Move the KL coefficient towards the one that holds `kl.target`; says which one the step was taken with."""
    kl, used = learner.objective.kl, learner.kl_coefficient
    if kl.target is None:
        return {}
    if "kl/ref" in updated:  # not while only the critic learns
        learner.kl_coefficient = F.kl.adapt(used, updated["kl/ref"], kl.target, samples, kl.horizon)
    return {"kl/coefficient": used}


def roll_out(run: Run) -> Pending:
    """Sample and score one step's groups. Interrupted, it leaves the data cursor where it was."""
    session, ranks = run.session, run.ranks
    sampling = session.sampling(run.progress.step + 1)
    with prefetch.next_prompts(session) as prompts:
        rollouts = _sample(run, ranks.share(prompts), sampling)
        judged = judged_groups(ranks, rollouts, sampling.samples)
        with run.phase("update"):
            kept = [sum(one.reward is not None for one in group) for group in judged]
            batch = sharding.shard(rollouts, kept, ranks.rank, ranks.size)
            batch = collate.to(batch, session.learner.backend.device)
            if not run.verified:
                packing_check.verify(session, batch, run.view.message)
                run.verified = True
            made = signals(session.learner, session.reference, batch, run.poll)
        everyone = [one for group in judged for one in group]
        return Pending(batch, made, rollout_metrics(everyone) | {"samples": len(everyone)})


def _sample(run: Run, prompts: list[Prompt], sampling: Sampling) -> list[Rollout]:
    """The scored completions of this rank's prompts; some are written to be looked at."""
    session = run.session
    with run.ranks.apart("rollouts"), session.learner.backend.autocast():
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
        run.samples = sample_rows(sampling.step, rollouts, run.recipe.log.samples)
        run.folder.write_rollouts(sampling.step, run.samples)
    return rollouts


def measure(run: Run) -> dict[str, float]:
    """Evaluate the current weights on the held-out problems."""
    with run.phase("eval"):
        return evaluate(run.session, run.poll, run.poll)


def record(run: Run, metrics: dict[str, float]) -> None:
    """Write one step's line, show it, and pass it to the trackers."""
    run.folder.append_metrics(metrics)
    if metrics.get("mismatch/alarm"):
        run.view.message(
            f"step {run.progress.step}: engine and trainer are apart, mismatch/kl {metrics['mismatch/kl']:.3g}"
        )
    run.session.learner.backend.log(metrics, run.progress.step)
    run.view.finish_step(metrics, run.samples)


def save(run: Run) -> None:
    """Write a checkpoint of everything."""
    run.progress.elapsed_s = run.folder.elapsed_s
    made = snapshot(run.session, run.progress)
    where = run.folder.checkpoints, run.progress.step
    checkpoint.save(*where, made.tensors, made.state, run.recipe.checkpoint.keep, made.own, run.ranks)


def finish(run: Run) -> None:
    """The last evaluation, the model in Hugging Face format, the summary and the report."""
    after = measure(run) if run.session.eval_prompts else None
    save(run)
    export(run.session, run.folder, run.progress, after, run.view.message)
