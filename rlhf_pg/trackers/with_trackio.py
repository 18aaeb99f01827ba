"""Trackio: a local database, in Trackio's own folder, unless TRACKIO_SPACE_ID or TRACKIO_SERVER_URL names a server."""

from __future__ import annotations

import shlex
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_pg.trackers.tracker import RunFacts


class Trackio:
    """A Trackio run. Trackio finds a run by its name only, so the name has a part that no other run has."""

    trl_prefix = "train/"

    def __init__(self, run: RunFacts, id: str | None) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        self.id = id or f"{run.name}-{uuid.uuid4().hex[:6]}"
        self.place = f"watch: trackio show --project {shlex.quote(run.project)}"
        self._trackio = trackio
        self._run = trackio.init(
            project=run.project, name=self.id, resume="allow", config=dict(run.config), embed=False, private=True
        )

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log(dict(metrics), step=step)
        self._raise_failure()

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        self._run.log(
            {"completions": self._trackio.Table(columns=list(columns), data=[list(row) for row in rows])}, step=step
        )

    def finish(self, failed: bool) -> None:
        self._trackio.finish()  # not only the run, which would be finished again at the end of the process
        self._raise_failure()

    def _raise_failure(self) -> None:
        """Raise OSError if Trackio could not write: it only warns of that, in a thread of its own."""
        if failures := getattr(self._run, "_warned_failures", None):
            raise OSError(f"could not write: {', '.join(sorted(failures))}")
