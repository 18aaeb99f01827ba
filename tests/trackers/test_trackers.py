"""Runs that log to the real packages, offline; what each tracker's own reader gives back is compared with
metrics.jsonl."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from rlhf_pg.trackers import trackers as trackers_module
from rlhf_pg.trackers.tracker import RunFacts
from rlhf_pg.trackers.trackers import Trackers
from tests.trackers import wandb_file
from tests.training import small_run


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        find_spec(package) is None, reason=f'{package} is not installed: pip install "rlhf_pg[{package}]"'
    )


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("TRACKIO_SPACE_ID", raising=False)
    monkeypatch.delenv("TRACKIO_SERVER_URL", raising=False)


def logged(folder: Path, tracker: str, resume_at: int = 2, **log: Any) -> list[dict[str, float]]:
    """Run two steps, resume for a third; return the lines of metrics.jsonl."""
    section = {"trackers": [tracker], "samples": 3, **log}
    assert small_run.run(folder, log=section, run={"steps": resume_at}) == 0
    assert small_run.run(folder, log=section, run={"steps": resume_at + 1, "resume": "auto"}) == 0
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same_numbers(
    of_tracker: dict[str, float], line: dict[str, float], ignore: tuple[str, ...] = ("step",)
) -> None:
    """Compare all numbers of a step, at the precision of float32, in which some trackers keep them."""
    written = {name: value for name, value in line.items() if value is not None and name not in ignore}
    assert of_tracker.keys() == written.keys()
    for name, value in written.items():
        assert math.isclose(of_tracker[name], value, rel_tol=1e-6, abs_tol=1e-9), name


def sample(step: int = 1, **changes: Any) -> dict[str, Any]:
    row = {"step": step, "prompt": "1+1=", "completion": "2", "answer": "2", "reward": 1.0, "parts": {"right": 1.0}}
    return row | {"outcome": "scored", "finish": "stop", "tokens": [5, 6]} | changes


def facts(folder: Path, **changes: Any) -> RunFacts:
    values: dict[str, Any] = {"folder": folder, "project": "tests", "name": "run", "config": {"optimizer.lr": 1e-3}}
    return RunFacts(**values | changes)


@needs("tensorboard")
def test_tensorboard_has_every_number_of_metrics_jsonl_also_over_a_resume(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    lines = logged(tmp_path, "tensorboard")
    events = EventAccumulator(str(tmp_path / "trackers" / "tensorboard")).Reload()
    by_step: dict[int, dict[str, float]] = {}
    for name in events.Tags()["scalars"]:
        for event in events.Scalars(name):
            by_step.setdefault(event.step, {})[name] = event.value
    assert sorted(by_step) == [1, 2, 3]
    for line in lines:
        assert_same_numbers(by_step[int(line["step"])], line)
    text = [t for t in events.Tags()["tensors"] if t.startswith("completions")]
    assert len(text) == 1
    assert [event.step for event in events.Tensors(text[0])] == [1, 2, 3]


@needs("tensorboard")
def test_in_tensorboard_steps_after_the_checkpoint_are_replaced_by_those_taken_again(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "trackers"
    with Trackers(["tensorboard"], facts(folder)) as first:
        for step in (1, 2, 3):
            first.log({"step": step, "loss": 1.0}, [], step)
    with Trackers(["tensorboard"], facts(folder, from_step=2, resumed=True)) as second:
        second.log({"step": 3, "loss": 7.0}, [], 3)
    events = EventAccumulator(str(folder / "tensorboard")).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in events] == [(1, 1.0), (2, 1.0), (3, 7.0)]


@needs("wandb")
def test_wandb_has_every_number_of_metrics_jsonl_in_one_run_inside_the_run_folder(tmp_path):
    lines = logged(tmp_path, "wandb", project="tests", entity="team", tags=["a", "b"])
    folder = tmp_path / "trackers" / "wandb"
    rows = wandb_file.history(folder)
    numbers = [row for row in rows if "completions" not in row]
    assert [row["step"] for row in numbers] == [1, 2, 3]
    for row, line in zip(numbers, lines, strict=True):
        assert_same_numbers(row, line, ignore=())
    starts = [r.run for f in folder.glob("offline-run-*/*.wandb") for r in wandb_file.records(f) if r.HasField("run")]
    assert {run.run_id for run in starts} == {json.loads((tmp_path / "trackers" / "ids.json").read_text())["wandb"]}
    assert {(run.project, run.entity, tuple(run.tags), run.display_name) for run in starts} == {
        ("tests", "team", ("a", "b"), tmp_path.name)
    }
    tables = [row["completions"] for row in rows if "completions" in row]
    assert [(table["_type"], table["nrows"], table["ncols"]) for table in tables] == [("table-file", 3, 9)] * 3


@needs("wandb")
def test_no_secret_of_the_command_line_is_in_what_wandb_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["rlhf-pg", "train", "r.yaml", "rollout.options.api_key=hunter2hunter2"])
    monkeypatch.setenv("SOME_PASSWORD", "correcthorsebattery")
    with Trackers(["wandb"], facts(tmp_path)) as open_trackers:
        open_trackers.log({"step": 1, "loss": 1.0}, [sample()], 1)
    written = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert b"tests" in written
    assert b"hunter2" not in written
    assert b"correcthorse" not in written


@needs("wandb")
@pytest.mark.parametrize("reason", ["no API key (wandb login)", "the server did not answer"])
def test_wandb_without_a_key_or_a_server_logs_offline_and_says_so(tmp_path, monkeypatch, reason):
    def login(**options):
        assert options == {"prompt": False}
        if "server" in reason:
            raise ConnectionError(reason)
        return False

    import_module("wandb").teardown()  # which has read WANDB_MODE once for the process
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setattr("wandb.login", login)
    said: list[str] = []
    with Trackers(["wandb"], facts(tmp_path), warn=said.append) as open_trackers:
        open_trackers.log({"step": 1, "loss": 0.5}, [], 1)
        assert open_trackers.places[0].startswith(f"to send it: wandb sync {tmp_path}/wandb/offline-run-")
    import_module("wandb").teardown()
    assert said == [f"wandb logs offline: {reason}"]
    assert [row["loss"] for row in wandb_file.history(tmp_path / "wandb")] == [0.5]


@needs("trackio")
def test_trackio_has_every_number_of_metrics_jsonl_in_one_run_on_this_machine(tmp_path, monkeypatch):
    pytest.importorskip("trackio")  # all its modules, before their folders are changed
    from trackio.sqlite_storage import SQLiteStorage  # pyright: ignore[reportMissingImports]

    for module in [m for name, m in sys.modules.items() if name.split(".")[0] == "trackio"]:
        for name, place in (("TRACKIO_DIR", "t"), ("MEDIA_DIR", "t/media"), ("ARTIFACTS_DIR", "t/artifacts")):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, tmp_path / place)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "t"))
    lines = logged(tmp_path / "run", "trackio", project="tests")
    name = json.loads((tmp_path / "run" / "trackers" / "ids.json").read_text())["trackio"]
    assert name.startswith("run-")
    assert [record["name"] for record in SQLiteStorage.get_run_records("tests")] == [name]
    rows = SQLiteStorage.get_logs("tests", name)
    numbers = [row for row in rows if "completions" not in row]
    assert [row["step"] for row in numbers] == [1, 2, 3]
    for row, line in zip(numbers, lines, strict=True):
        assert_same_numbers({k: v for k, v in row.items() if k not in ("step", "timestamp")}, line)
    tables = [row["completions"]["_value"] for row in rows if "completions" in row]
    assert [len(table) for table in tables] == [3, 3, 3]
    assert tables[0][0].keys() >= {"prompt", "completion", "reward", "outcome"}


@needs("mlflow")
def test_mlflow_has_every_number_of_metrics_jsonl_in_one_run_inside_the_run_folder(tmp_path):
    from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]

    lines = logged(tmp_path, "mlflow", project="tests", tags=["mine"])
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/trackers/mlflow.db")
    experiment = client.get_experiment_by_name("tests")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert [(run.info.run_name, run.info.status, run.data.tags["mine"]) for run in runs] == [
        (tmp_path.name, "FINISHED", "true")
    ]
    assert runs[0].data.params["optimizer.lr"] == "0.001"
    by_step: dict[int, dict[str, float]] = {}
    for name in runs[0].data.metrics:
        for metric in client.get_metric_history(runs[0].info.run_id, name):
            by_step.setdefault(metric.step, {})[name] = metric.value
    assert sorted(by_step) == [1, 2, 3]
    for line in lines:
        assert_same_numbers(by_step[int(line["step"])], line)
    table = json.loads(Path(client.download_artifacts(runs[0].info.run_id, "completions.json")).read_text())
    assert [row[table["columns"].index("step")] for row in table["data"]] == [1] * 3 + [2] * 3 + [3] * 3


@needs("mlflow")
def test_a_name_that_mlflow_does_not_allow_is_written_with_what_it_does(tmp_path):
    from rlhf_pg.trackers.with_mlflow import _allowed

    assert _allowed("eval/pass@1_low") == "eval/pass_at_1_low"
    assert _allowed("reward/größe (%)") == "reward/größe ___"


def test_a_run_that_starts_anew_in_a_folder_is_a_new_run_in_the_trackers(tmp_path):
    (tmp_path / "ids.json").write_text('{"tensorboard": "of an earlier run"}')
    with Trackers(["tensorboard"], facts(tmp_path)):
        pass
    assert json.loads((tmp_path / "ids.json").read_text()) == {"tensorboard": "tensorboard"}


def test_a_tracker_whose_package_is_missing_is_refused_before_anything_is_loaded_and_names_the_extra(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "run: {dir: run}\nmodel: {path: tiny}\ndata: {train: {task: arithmetic}}\nrewards: [{fn: gsm8k}]\n"
        "log: {trackers: [tensorboard, wandb, mlflow]}\n"
    )
    code = (
        "import sys, importlib.util as u; real = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name in ('wandb', 'mlflow') else real(name, *a)\n"
        "from rlhf_pg.cli import main; code = main(sys.argv[1:])\n"
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    for command in ("train", "check"):
        run = subprocess.run([sys.executable, "-c", code, command, str(recipe)], capture_output=True, text=True)
        assert run.returncode != 0
        said = " ".join(run.stderr.split())
        assert 'log.trackers: wandb is not installed: pip install "rlhf_pg[wandb]", or leave it out' in said
        assert 'log.trackers: mlflow is not installed: pip install "rlhf_pg[mlflow]", or leave it out' in said
        assert "tensorboard is not" not in said and "Traceback" not in said
    assert not (tmp_path / "run").exists()


class Broken:
    """A tracker whose disk is full from a step on."""

    def __init__(self, run: RunFacts, id: str | None) -> None:
        self.id, self.place, self.trl_prefix, self.steps = "1", "nowhere", "", []

    def log(self, metrics, step: int) -> None:
        self.steps.append(step)
        if step == 2:
            raise OSError(28, "No space left on device")

    def table(self, columns, rows, step: int) -> None: ...

    def finish(self, failed: bool) -> None:
        raise AssertionError("a tracker that failed is not closed again")


def test_a_tracker_that_fails_is_left_out_with_one_warning_and_the_run_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("rlhf_pg.trackers.with_tensorboard.TensorBoard", Broken)
    assert small_run.run(tmp_path, log={"trackers": ["tensorboard"]}) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if "tensorboard" in line]
    assert warnings == [
        "warning: tensorboard failed at step 2, the run goes on without it; metrics.jsonl has every step (OSError: "
        "[Errno 28] No space left on device)"
    ]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_tracker_that_cannot_be_opened_is_left_out_with_a_warning(tmp_path, monkeypatch):
    def fail(run, id):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("rlhf_pg.trackers.with_tensorboard.TensorBoard", fail)
    said: list[str] = []
    with Trackers(["tensorboard"], facts(tmp_path), warn=said.append) as open_trackers:
        open_trackers.log({"step": 1, "loss": 1.0}, [], 1)
    assert len(said) == 1
    assert said[0].startswith("tensorboard could not be opened, the run goes on without it")


@pytest.mark.parametrize(("steps", "with_table"), [(3, [1, 2, 3]), (120, [1, *range(3, 121, 3)])])
def test_completions_are_shown_at_the_first_and_last_step_and_some_fifty_times_between(
    tmp_path, monkeypatch, steps, with_table
):
    seen = []

    class Tables(Broken):
        def log(self, metrics, step: int) -> None: ...

        def table(self, columns, rows, step: int) -> None:
            seen.append(step)

        def finish(self, failed: bool) -> None: ...

    monkeypatch.setattr("rlhf_pg.trackers.with_tensorboard.TensorBoard", Tables)
    with Trackers(["tensorboard"], facts(tmp_path), steps=steps) as open_trackers:
        for step in range(1, steps + 1):
            open_trackers.log({"step": step}, [sample(step)], step)
    assert seen == with_table


def test_the_table_of_completions_has_the_parts_of_the_reward_and_text_for_any_answer():
    columns, rows = trackers_module.table_of([sample(), sample(answer=[1, 2], parts={"form": 0.5}, reward=None)])
    assert columns == [
        "step", "prompt", "completion", "answer", "reward", "right", "form", "outcome", "finish", "length",
    ]  # fmt: skip
    assert rows == [
        [1, "1+1=", "2", "2", 1.0, 1.0, None, "scored", "stop", 2],
        [1, "1+1=", "2", "[1, 2]", None, None, 0.5, "scored", "stop", 2],
    ]


def test_a_number_that_is_none_or_not_finite_is_not_sent(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Trackers(["tensorboard"], facts(tmp_path)) as open_trackers:
        open_trackers.log({"step": 1, "loss": math.nan, "kl/ref": None, "lr": math.inf, "entropy": 2.0}, [], 1)
    assert EventAccumulator(str(tmp_path / "tensorboard")).Reload().Tags()["scalars"] == ["entropy"]


def test_text_in_tensorboards_table_keeps_its_lines_and_marks():
    from rlhf_pg.trackers.with_tensorboard import _table

    assert _table(["a"], [["x|y\n**z**"]]).splitlines()[-1] == "| x&#124;y<br>&#42;&#42;z&#42;&#42; |"
    assert "<script>" not in _table(["a"], [["<script>alert(1)</script>"]])


def test_the_recipe_that_trackers_get_is_flat_and_without_secrets():
    from rlhf_pg.training.launch_facts import flat

    nested = {
        "a": {"api_key": "x", "lr": 0.1},
        "rewards": [{"fn": "gsm8k"}],
        "url": "https://me:pw@host/x",
        "b": [1, 2],
    }
    assert flat(nested) == {
        "a.api_key": "***",
        "a.lr": 0.1,
        "rewards.0.fn": "gsm8k",
        "url": "https://***@host/x",
        "b": "[1, 2]",
    }
