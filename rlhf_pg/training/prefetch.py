"""One step ahead: while a step's update runs, a second process samples the next step's rollouts (rollout.overlap).

    step k       has its rollouts -> start k + 1, from the weights before update k -> score, update k
    step k + 1   waits for them -> start k + 2, ...

So rollouts are one step old, but for those of step 1; importance weights (update.importance_cap) correct for it. The
engine has what was started; a checkpoint has it too: finished, as completions; unfinished, as the weights to sample it
from again. Without rollout.overlap the next step's prompts are drawn, and that is all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

from torch import Tensor

from rlhf_pg.rollout import protocol
from rlhf_pg.rollout.engine import RolloutRequest
from rlhf_pg.training.setup import Session
from rlhf_pg.types import Prompt, Sampling


@contextmanager
def next_prompts(session: Session) -> Iterator[list[Prompt]]:
    """Yield the prompts of the next step: those whose rollouts were started, else new ones.

    Left by an exception, data cursor and started rollouts are what they were.
    """
    overlap = session.recipe.rollout.overlap
    cursor, started = session.sampler.state(), session.engine.started if overlap else None
    try:
        yield started.prompts if started else session.sampler.next()
    except BaseException:
        session.sampler.load_state(cursor)
        if overlap:
            session.engine.put_back(started)
        raise


def start(session: Session, sampling: Sampling) -> dict[str, float]:
    """Start the rollouts of the step after that of `sampling`, if there is one. Returns what to log of this step's."""
    if not session.recipe.rollout.overlap:
        return {}
    engine = session.engine
    metrics = {"time/generation_s": engine.seconds}
    if sampling.step < session.recipe.run.steps:
        engine.load_weights((), version=session.learner.updates)
        engine.start(session.sampler.next(), replace(sampling, step=sampling.step + 1))
    return metrics


def collect(session: Session, poll: Callable[..., None]) -> None:
    """Wait for what was started, so that a checkpoint has it. `poll` may raise, to leave at once."""
    if session.recipe.rollout.overlap:
        session.engine.collect(poll)


def snapshot(session: Session) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Return (tensors by group, JSON) of what was started; both empty when there is nothing.

    Weights are left out where the rollouts are sampled from those that the checkpoint has anyway.
    """
    started = session.engine.look() if session.recipe.rollout.overlap else None
    if started is None:
        return {}, {}
    state: dict[str, Any] = {
        "prompts": [prompt.id for prompt in started.prompts],
        "sampling": asdict(started.sampling),
        "version": started.version,
    }
    if started.groups is not None:
        header, tensors = protocol.pack(started.groups)
        return {"ahead": tensors}, {"ahead": state | {"completions": header, "seconds": started.seconds}}
    old = started.version != session.learner.updates
    return {"ahead_weights": dict(started.weights)} if old else {}, {"ahead": state}


def restore(session: Session, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any], sampling: Sampling) -> None:
    """Undo `snapshot`; unfinished rollouts are sampled again. `sampling`: as the recipe has it now.

    Raises ValueError if that is not what they were started with.
    """
    if "ahead" not in state:
        return
    saved = state["ahead"]
    before = Sampling(**saved["sampling"])
    if replace(sampling, step=before.step) != before:
        raise ValueError(
            f"rollouts of step {before.step} are under way with {before}: finish them first, then change that"
        )
    by_id = {prompt.id: prompt for prompt in session.train_prompts}
    prompts = [by_id[name] for name in saved["prompts"]]
    if "completions" in saved:
        groups = protocol.unpack(saved["completions"], tensors["ahead"])
        session.engine.put_back(RolloutRequest(prompts, before, saved["version"], groups, saved["seconds"]))
        return
    with session.learner.backend.autocast():
        session.engine.start(prompts, before, tensors.get("ahead_weights"), saved["version"])
