"""MLflow: a database in the run's folder, or the server that MLFLOW_TRACKING_URI names."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_pg.trackers.tracker import RunFacts

AT_ONCE = 100  # parameters in one request


class MLflow:
    """An MLflow run, by the client: nothing global is set, and nothing is recorded of the environment.

    Names may hold letters, digits, "_", "-", ".", " ", ":" and "/" only: "eval/pass@1" becomes "eval/pass_at_1".
    """

    trl_prefix = ""

    def __init__(self, run: RunFacts, id: str | None) -> None:
        from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]
        from mlflow.entities import Metric, Param  # pyright: ignore[reportMissingImports]

        local = f"sqlite:///{(run.folder / 'mlflow.db').resolve()}"
        address = os.environ.get("MLFLOW_TRACKING_URI") or local
        here = address == local
        server = f"mlflow ui --backend-store-uri sqlite:///{run.folder / 'mlflow.db'}"
        self.place = f"watch: {server if here else 'the server of MLFLOW_TRACKING_URI'}"
        self._client, self._metric = MlflowClient(tracking_uri=address), Metric
        if id is not None:
            self.id = id
            self._client.update_run(id, status="RUNNING")
            return
        experiment = self._client.get_experiment_by_name(run.project)
        files = (run.folder / "mlflow").resolve().as_uri() if here else None
        number = experiment.experiment_id if experiment else self._client.create_experiment(run.project, files)
        tags = {_allowed(tag): "true" for tag in run.tags}
        self.id = self._client.create_run(number, run_name=run.name, tags=tags).info.run_id
        parameters = [Param(_allowed(name), str(value)) for name, value in run.config.items()]
        for start in range(0, len(parameters), AT_ONCE):
            self._client.log_batch(self.id, params=parameters[start : start + AT_ONCE])

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        self._client.log_batch(self.id, metrics=[self._metric(_allowed(k), v, now, step) for k, v in metrics.items()])

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        by_column = {name: [row[i] for row in rows] for i, name in enumerate(columns)}
        self._client.log_table(self.id, by_column, "completions.json")

    def finish(self, failed: bool) -> None:
        self._client.set_terminated(self.id, "FAILED" if failed else "FINISHED")


def _allowed(name: str) -> str:
    return re.sub(r"[^\w./: -]", "_", name.replace("@", "_at_"))
