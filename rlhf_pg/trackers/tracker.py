"""What every tracker can do, and what it is told of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

CONFIG = "recipe"


@dataclass(frozen=True)
class RunFacts:
    """A run as trackers are told of it."""

    folder: Path  # for what a tracker writes to this disk
    project: str
    name: str
    config: Mapping[str, Any]  # the recipe, flat: {"optimizer.lr": 1e-6}; without what looks like a secret
    entity: str | None = None
    tags: Sequence[str] = ()
    from_step: int = 0  # steps that the run has taken before this launch
    resumed: bool = False  # a run of an earlier launch goes on
    trl_names: bool = False  # metrics come under the names that TRL gives them


class Tracker(Protocol):
    """One run in one tracker. Any method may raise; `Trackers` then leaves the tracker out."""

    id: str  # under which a resumed run is found again
    place: str  # where to look: a line
    trl_prefix: str  # that TRL's callback puts before its names

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Take the finite numbers of a step."""
        ...

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        """Take the table of a step's completions; cells are text, numbers or None."""
        ...

    def finish(self, failed: bool) -> None:
        """Write what is left and close. `failed`: the run ended by an error."""
        ...
