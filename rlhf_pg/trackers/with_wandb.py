"""Weights & Biases: files in the run's folder, sent to its server unless WANDB_MODE is offline."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_pg.trackers.tracker import RunFacts

DATA = "WANDB_DATA_DIR"


class WandB:
    """A W&B run whose horizontal axis is the step, so that steps taken again after a resume are not refused.

    Without a key or a connection it is logged offline, to be sent later. What W&B would record by itself of the command
    line, the code, the environment and the terminal is left out: run.json has it without secrets.
    """

    trl_prefix = "train/"

    def __init__(self, run: RunFacts, id: str | None) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        self.id = id or uuid.uuid4().hex[:8]
        self._table = wandb.Table
        self._own_data = DATA not in os.environ
        if self._own_data:  # completions wait there to be sent: in the home folder they would not travel with the run
            os.environ[DATA] = str(run.folder / "wandb")
        online, why = wandb.setup().settings.mode == "online", ""
        try:
            if online and not wandb.login(prompt=False):
                why = "no API key (wandb login)"
            self._run = self._open(wandb, run, offline=bool(why))
        except Exception as error:  # wandb has many for a server that is away, or refuses the key
            if not online:
                raise
            why = " ".join(str(error).split())
            self._run = self._open(wandb, run, offline=True)
        self.warning = f"wandb logs offline: {why}" if why else ""
        files = run.folder / "wandb" / Path(self._run.settings.sync_dir).name
        self.place = f"to send it: wandb sync {files}" if self._run.offline else f"watch: {self._run.url}"
        self._axis = "train/global_step" if run.trl_names else "step"
        self._run.define_metric(self._axis, hidden=True)
        self._run.define_metric("*", step_metric=self._axis, step_sync=True)

    def _open(self, wandb: Any, run: RunFacts, *, offline: bool) -> Any:
        settings = wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,
            disable_code=True,
            x_disable_meta=True,
            x_save_requirements=False,
        )
        return wandb.init(
            project=run.project,
            entity=run.entity,
            name=run.name,
            tags=list(run.tags) or None,
            id=self.id,
            resume="allow",
            dir=run.folder,
            config=dict(run.config),
            mode="offline" if offline else None,
            settings=settings,
        )

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log({**metrics, self._axis: step})

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        table = self._table(columns=list(columns), data=[list(row) for row in rows], allow_mixed_types=True)
        self._run.log({"completions": table, self._axis: step})

    def finish(self, failed: bool) -> None:
        try:
            self._run.finish(exit_code=int(failed))
        finally:
            if self._own_data:
                os.environ.pop(DATA, None)
