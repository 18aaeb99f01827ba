"""Where the time of a whole step goes, by a clock around each part that a trainer cannot do without."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks import ours
from benchmarks.port import Answer, Port
from benchmarks.shapes import shape_of
from rlhf_pg.training.setup import Session


class Clock:
    """Seconds by part, of one step."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self._started = 0.0

    def around(self, part: str, holder: Any, name: str) -> None:
        """Time every call of holder.name."""
        inner: Callable[..., Any] = getattr(holder, name)

        def timed(*args: Any, **named: Any) -> Any:
            started = time.perf_counter()
            try:
                return inner(*args, **named)
            finally:
                self._add(part, started)

        setattr(holder, name, timed)

    def around_forward(self, part: str, module: nn.Module) -> None:
        """Time every forward of a module that is not called inside itself."""

        def before(*_: Any) -> None:
            self._started = time.perf_counter()

        def after(*_: Any) -> None:
            self._add(part, self._started)

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)

    def _add(self, part: str, started: float) -> None:
        self.spent[part] = self.spent.get(part, 0.0) + time.perf_counter() - started


def step(specification: dict[str, Any], port: Port) -> None:
    """Serve whole training steps; the answer has the seconds of each part."""
    with ExitStack() as stack:
        run = ours.open_run(stack, shape_of(specification["shape"]), Path(specification["folder"]))
        clock = Clock()
        watch(clock, run.session)

        def take(_: Answer) -> Answer:
            clock.spent = {}
            answer = ours.take_step(run)
            return {"tokens": answer["tokens"], **clock.spent}

        port.serve(take)


def watch(clock: Clock, session: Session) -> None:
    """Put clocks around the parts of a step.

    Sampling is the engine's `generate`; forward and reference are the policies' forwards, log-probs included.
    """
    clock.around("sampling_s", session.engine, "generate")
    clock.around_forward("forward_s", session.learner.policy)
    if session.reference_policy is not None:
        clock.around_forward("reference_s", session.reference_policy)
    clock.around("backward_s", session.learner.backend, "backward")
    clock.around("optimizer_s", session.learner.optimizer, "step")
