"""A training run from its folder to its report: open or resume, preflight, evaluate, step, save, export."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from rlhf_pg import config
from rlhf_pg.commands import opening
from rlhf_pg.commands.cold_start import make_model
from rlhf_pg.commands.export import closing, export, headline, is_finished
from rlhf_pg.commands.open_run import open_folder, resumed
from rlhf_pg.config import ResolvedRecipe
from rlhf_pg.display.figures import counted
from rlhf_pg.display.live import LiveView
from rlhf_pg.display.notices import Watch
from rlhf_pg.distributed.backend import Backend
from rlhf_pg.distributed.interrupt import Stopped, StopRequest
from rlhf_pg.errors import RunError
from rlhf_pg.preflight import checks
from rlhf_pg.report import run_record
from rlhf_pg.storage import checkpoint
from rlhf_pg.storage.run_dir import RunDir
from rlhf_pg.trackers import installed
from rlhf_pg.trackers.tracker import RunFacts
from rlhf_pg.trackers.trackers import Trackers
from rlhf_pg.training import launch_facts, prefetch
from rlhf_pg.training.loop import TrainingRun, measure, record, save, train_step
from rlhf_pg.training.resume import refuse_another_run
from rlhf_pg.training.setup import build, join


def train(recipe: ResolvedRecipe, source: Path | None = None) -> int:
    """Run a recipe to its end, or to a SIGTERM, after which `run.resume=auto` continues it. Returns the exit code.

    source: the recipe's file, whose commit is recorded.
    """
    installed.require(recipe.log.trackers, str(source or "recipe"))
    make_model(recipe)
    backend = join(recipe)
    try:
        return _train(recipe, backend, source)
    except BaseException as error:
        backend.ranks.report_failure(error)
        cause = backend.ranks.first_cause() if isinstance(error, RuntimeError) else ""
        if cause and not isinstance(error, RunError):  # a collective of DeepSpeed's that a lost rank broke
            raise RunError(cause) from error
        raise


def _train(recipe: ResolvedRecipe, backend: Backend, source: Path | None) -> int:
    ranks = backend.ranks
    with ExitStack() as stack:
        folder = stack.enter_context(open_folder(recipe, ranks))
        with ranks.independently("the recipe of the run"):
            if folder.resume_from:
                refuse_another_run(recipe, folder.path / "config.yaml")
        if is_finished(recipe, folder):
            if ranks.first and recipe.log.live != "off":
                more = f"run.steps={2 * recipe.run.steps or 1} would go on"
                print(f"{folder.path} has finished its {counted(recipe.run.steps, 'step')}: nothing to do ({more})")
                print("\n".join(closing(folder.path)))
            return 0
        session = build(recipe, backend=backend)
        stack.callback(session.close)
        progress = resumed(session, folder)
        folder.write_text("config.yaml", config.dump(recipe))
        live = recipe.log.live if ranks.first else "off"
        view = LiveView(recipe.run.steps, live)
        if ranks.first:
            launch = launch_facts.facts(recipe, backend, session.learner.policy, source, progress.step)
            folder.add_launch(launch)
            view.message("\n".join(opening.lines(recipe, launch, session.estimate)))
        trackers = stack.enter_context(_trackers(recipe, folder, view, progress.step))
        stack.enter_context(view)
        for note in session.notes:
            view.message(note)
        if recipe.run.preflight:
            with ranks.independently("preflight"):
                checks.preflight(session, view.message)
        stop = stack.enter_context(StopRequest())  # until here there is nothing to save: a signal just ends the process
        folder.continue_clock(progress.elapsed_s)
        watch = Watch(run_record.read(folder.path).steps if folder.resume_from and ranks.first else ())
        return _save_if_interrupted(TrainingRun(session, folder, view, stop, progress, watch=watch, trackers=trackers))


def _trackers(recipe: ResolvedRecipe, folder: RunDir, view: LiveView, from_step: int) -> Trackers:
    """Open the recipe's trackers, in the first process only, and say where to look."""
    log = recipe.log
    if not log.trackers or not folder.writes:
        return Trackers()
    run = RunFacts(
        folder=folder.path / "trackers",
        project=log.project,
        name=recipe.run.dir.absolute().name,
        config=launch_facts.flat(recipe.written.model_dump(mode="json")),
        entity=log.entity,
        tags=log.tags,
        from_step=from_step,
        resumed=folder.resume_from is not None,
        trl_names=log.names == "trl",
    )
    trackers = Trackers(log.trackers, run, steps=recipe.run.steps, warn=view.warning)
    for place in trackers.places:
        view.message(place)
    return trackers


def _save_if_interrupted(run: TrainingRun) -> int:
    """Run to the end; when stopped or broken, save first what was paid for. Returns the exit code."""
    try:
        _run(run)
    except Stopped:
        save(run)
        run.view.end()
        run.view.message(f"stopped at step {run.progress.step}; saved. Continue with run.resume=auto")
        return 130
    except Exception as error:
        all_failed = run.ranks.report_failure(error)  # if not, the others are elsewhere: a checkpoint takes all of them
        if all_failed and isinstance(error, FloatingPointError) and run.progress.pending is None:
            _leave_diverged(run)
        elif all_failed and (run.progress.step or run.progress.pending):
            try:
                save(run)
                run.view.end()
                run.view.message(f"failed after step {run.progress.step}; saved. Once mended, use run.resume=auto")
            except Exception as error:  # a full disk is often the very reason: the first cause is what is raised
                run.view.message(f"failed after step {run.progress.step}, and could not save: {error}")
        raise
    return 0


def _leave_diverged(run: TrainingRun) -> None:
    """Say where a run goes on whose weights are of no use: they, or what they give for a prompt, are not finite.

    A gradient that is not finite leaves them as they were, and its rollouts are saved like those of any failed step.
    """
    sound = checkpoint.set_aside(run.folder.checkpoints, run.progress.step) if run.ranks.first else None
    run.view.end()
    if sound:
        run.view.message(
            f"diverged after step {run.progress.step}: not saved. run.resume=auto goes on from {sound.name}; mend the "
            "cause first, as a lower optimizer.lr"
        )
    elif run.ranks.first:
        run.view.message(f"diverged after step {run.progress.step}: not saved, and there is no earlier checkpoint")


def _run(run: TrainingRun) -> None:
    """Measure, take all steps, measure again, export."""
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
            with run.ranks.independently("the step's record"):
                record(run, metrics)  # the step is done, whatever happens to its evaluation
        if recipe.checkpoint.every and progress.step % recipe.checkpoint.every == 0:
            prefetch.collect(run.session, run.poll)
            save(run)
    after = measure(run) if run.session.eval_prompts else None
    save(run)
    run.view.end()
    export(run.session, run.folder, progress, after, run.view)
