"""The trackers of one run. They never end it: one that fails is left out, with a warning."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from types import TracebackType
from typing import Any, Self

from rlhf_pg.display.quiet import prints_logged
from rlhf_pg.storage.atomic_io import write_atomic
from rlhf_pg.trackers.metric_names import renamed
from rlhf_pg.trackers.tracker import RunFacts, Tracker

CLASSES = {"tensorboard": "TensorBoard", "wandb": "WandB", "trackio": "Trackio", "mlflow": "MLflow"}
IDS = "ids.json"  # in the trackers' folder: the name of each tracker -> the run's id there
TABLES = 50  # of completions in a run, at most, besides the first step's and the last's


class Trackers:
    """The open trackers of a run, maybe none. Use it as a context: leaving it closes them."""

    def __init__(
        self,
        names: Sequence[str] = (),
        run: RunFacts | None = None,
        *,
        steps: int = 0,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Open the trackers `names`; where `run.resumed` and an id was kept, go on in the same runs.

        steps: of the whole run. warn: takes one line for each tracker that fails, or does not do all it was asked for.
        """
        self._open: dict[str, Tracker] = {}
        self._run, self._warn = run, warn
        self._every = max(1, math.ceil(steps / TABLES))
        self._last = steps
        if run is None or not names:
            return
        kept = _kept_ids(run) if run.resumed else {}
        with self._left_out_if_it_fails("trackers", "could not make their folder"):
            run.folder.mkdir(parents=True, exist_ok=True)  # where it is missing, wandb writes elsewhere
        for name in dict.fromkeys(names):
            with self._left_out_if_it_fails(name, "could not be opened"), prints_logged():
                tracker: Tracker = getattr(import_module(f"{__package__}.with_{name}"), CLASSES[name])(
                    run, kept.get(name)
                )
                self._open[name] = tracker
        for tracker in self._open.values():
            if note := getattr(tracker, "warning", ""):
                warn(note)
        self._keep_ids(run)

    @property
    def places(self) -> list[str]:
        """Say, a line each, where to watch the run."""
        return [tracker.place for tracker in self._open.values()]

    def log(self, metrics: Mapping[str, Any], samples: Sequence[Mapping[str, Any]], step: int) -> None:
        """Send the line of a step to the trackers, and at some steps a table of its samples (rows of rollouts/)."""
        numbers = {name: float(value) for name, value in metrics.items() if name != "step" and _finite(value)}
        with_table = samples and (step in (1, self._last) or step % self._every == 0)
        for name, tracker in list(self._open.items()):
            with self._left_out_if_it_fails(name, f"failed at step {step}"):
                trl = self._run is not None and self._run.trl_names
                tracker.log(renamed(numbers, tracker.trl_prefix) if trl else numbers, step)
                if with_table:
                    tracker.table(*table_of(samples), step)

    def close(self, *, failed: bool = False) -> None:
        """Close the trackers; a second call does nothing. `failed`: the run ended by an error."""
        for name, tracker in list(self._open.items()):
            with self._left_out_if_it_fails(name, "could not be closed"), prints_logged():
                tracker.finish(failed)
        self._open.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.close(failed=kind is not None)

    @contextmanager
    def _left_out_if_it_fails(self, name: str, when: str) -> Iterator[None]:
        """Turn an error into a warning, and use the tracker no more: it may have waited long before it gave up."""
        try:
            yield
        except Exception as error:
            self._open.pop(name, None)
            cause = " ".join(f"{type(error).__name__}: {error}".split())
            self._warn(f"{name} {when}, the run goes on without it; metrics.jsonl has every step ({cause})")

    def _keep_ids(self, run: RunFacts) -> None:
        ids = {name: tracker.id for name, tracker in self._open.items()}
        if ids:
            with self._left_out_if_it_fails(
                IDS, "could not be written: a resumed run will be a new one in the trackers"
            ):
                kept = _kept_ids(run) if run.resumed else {}
                write_atomic(run.folder / IDS, json.dumps(kept | ids, indent=2).encode() + b"\n")


def _kept_ids(run: RunFacts) -> dict[str, str]:
    """Return the ids that an earlier launch of the run wrote; none where it had no trackers."""
    try:
        return dict(json.loads((run.folder / IDS).read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def table_of(samples: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Return (columns, rows) of rows of rollouts/: what was asked and answered, the reward and its parts."""
    parts = list(dict.fromkeys(name for sample in samples for name in sample["parts"]))
    columns = ["step", "prompt", "completion", "answer", "reward", *parts, "outcome", "finish", "length"]
    rows = []
    for sample in samples:
        answer = sample["answer"]
        asked = [sample["step"], sample["prompt"], sample["completion"], None if answer is None else str(answer)]
        rewards = [sample["reward"], *(sample["parts"].get(name) for name in parts)]
        rows.append([*asked, *rewards, sample["outcome"], sample["finish"], len(sample["tokens"])])
    return columns, rows


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
