"""Refusals that say what to do, and a log that survives torn lines and full disks."""

import errno
import json
import os
import resource
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from rlhf_pg.storage import checkpoint
from rlhf_pg.storage.run_dir import RunDir


def metrics(run: RunDir) -> list[dict]:
    """The lines of metrics.jsonl."""
    return [strict(line) for line in run.metrics.read_text().splitlines()] if run.metrics.exists() else []


def strict(line: str) -> dict:
    """Parse JSON as other tools do: NaN and Infinity are not JSON."""
    return json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


def save(run: RunDir, step: int) -> Path:
    return checkpoint.save(run.checkpoints, step, {"weights": {"w": torch.tensor(step)}}, {"step": step}, 2)


# ---- opening


def test_a_new_run_has_its_folders_and_nothing_else(tmp_path):
    with RunDir.open(tmp_path / "deep" / "run", "never") as run:
        assert sorted(path.name for path in run.path.iterdir()) == [".lock", "checkpoints", "rollouts"]
        assert not list(run.checkpoints.iterdir()) and not list(run.rollouts.iterdir())
        assert run.resume_from is None


def test_never_refuses_an_earlier_run_and_changes_nothing(tmp_path):
    with RunDir.open(tmp_path / "a", "never") as run:
        run.append_metrics({"step": 1})
    with RunDir.open(tmp_path / "b", "never") as run:
        save(run, 1)
    for name in "ab":
        with pytest.raises(ValueError, match=rf"{name} holds an earlier run: .*run\.resume=auto.*another run\.dir"):
            RunDir.open(tmp_path / name, "never")
    assert (tmp_path / "a" / "metrics.jsonl").read_text() == '{"step": 1}\n'
    RunDir.open(tmp_path / "a", "auto").close()  # the refused ones hold no lock


def test_a_folder_prepared_by_hand_or_left_before_the_first_step_is_no_earlier_run(tmp_path):
    with RunDir.open(tmp_path, "never") as run:
        run.write_text("config.yaml", "run: {}")
        run.write_rollouts(1, [])
        (run.rollouts / ".tmp-step_00000002.jsonl").touch()
    with RunDir.open(tmp_path, "never") as run:
        assert not list(run.rollouts.iterdir())


def test_auto_and_must_continue_from_the_newest_intact_checkpoint(tmp_path, caplog):
    with RunDir.open(tmp_path, "auto") as run:
        save(run, 1)
        (save(run, 2) / "state.json").write_text("{}")
    for resume in ("auto", "must"):
        with RunDir.open(tmp_path, resume) as run:
            assert run.resume_from == tmp_path / "checkpoints" / "step_00000001"
    assert "step_00000002/state.json" in caplog.text


def test_must_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"run\.resume=must.*no checkpoint.*run\.resume=auto"):
        RunDir.open(tmp_path, "must")


def test_only_damaged_checkpoints_are_never_taken_for_a_fresh_start(tmp_path):
    with RunDir.open(tmp_path, "auto") as run:
        run.append_metrics({"step": 1})
        (save(run, 1) / "manifest.json").unlink()
    for resume in ("auto", "must"):
        with pytest.raises(ValueError, match="is intact"):
            RunDir.open(tmp_path, resume)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'


def test_auto_without_a_checkpoint_starts_the_log_anew(tmp_path):
    with RunDir.open(tmp_path, "never") as run:
        run.append_metrics({"step": 0})
        run.write_rollouts(1, [{}])
    with RunDir.open(tmp_path, "auto") as run:
        assert metrics(run) == [] and not list(run.rollouts.iterdir())


def test_leftovers_of_killed_writers_are_swept_at_open(tmp_path):
    with RunDir.open(tmp_path, "auto") as run:
        old = save(run, 1)
    old.rename(old.with_name("step_00000001.replaced"))  # killed between the two renames of a replacing save
    for leftover in (
        "checkpoints/.tmp-step_00000001/part",
        "rollouts/.tmp-step_00000001.jsonl/x",
        ".tmp-summary.json/x",
    ):
        (tmp_path / leftover).parent.mkdir()
        (tmp_path / leftover).touch()
    with RunDir.open(tmp_path, "must") as run:
        assert run.resume_from == old
    assert not list(tmp_path.rglob(".tmp-*")) and not list(tmp_path.rglob("*.replaced"))


@pytest.mark.parametrize("where", ["file", "file/below"])
def test_a_path_that_is_a_file_is_refused(tmp_path, where):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"run\.dir .*file.* cannot be used: .*choose a run\.dir"):
        RunDir.open(tmp_path / where, "auto")


@pytest.mark.parametrize("call", ["write", "fsync", "mkdir"])
@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC])
def test_a_disk_that_refuses_the_probe_is_refused_at_open(tmp_path, monkeypatch, call, code):
    def refuse(*_, **__):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch, pytest.raises(ValueError, match=rf"run\.dir .*{os.strerror(code)}.*choose"):
        patch.setattr(os, call, refuse)
        RunDir.open(tmp_path / "run", "auto")
    RunDir.open(tmp_path / "run", "never").close()


# ---- metrics


def test_a_metrics_row_is_one_line_of_strict_json(tmp_path):
    with RunDir.open(tmp_path, "never") as run:
        run.append_metrics(
            {
                "step": np.int64(3),
                "a": torch.tensor(2.5, dtype=torch.bfloat16),
                "b": np.float32(0.5),
                "c": float("nan"),
                "d": torch.tensor(float("-inf")),
                "e": np.bool_(True),
                "f": None,
                "g": "π\n",
                "h": 7,
            }
        )
        run.append_metrics({"step": 4})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [strict(line) for line in lines] == [
        {"step": 3, "a": 2.5, "b": 0.5, "c": None, "d": None, "e": True, "f": None, "g": "π\n", "h": 7},
        {"step": 4},
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"loss": 1.0}, "int step"),
        ({"step": 1.0}, "int step"),
        ({"step": True}, "int step"),
        ({"step": 1, "x": [1]}, "'x' is a list"),
        ({"step": 1, "x": torch.ones(2)}, "'x' is a Tensor"),
        ({"step": 1, "x": {"y": 1}}, "'x' is a dict"),
        ({"step": 1, "x": {1, 2}}, "set: it cannot be written"),
    ],
)
def test_a_row_that_is_not_flat_is_refused_by_key(tmp_path, row, message):
    with RunDir.open(tmp_path, "never") as run, pytest.raises(ValueError, match=message):
        run.append_metrics(row)
    assert not run.metrics.exists()


def test_truncating_drops_later_steps_and_a_torn_line(tmp_path, caplog):
    with RunDir.open(tmp_path, "never") as run:
        for step in (1, 2, 3):
            run.append_metrics({"step": step, "x": step / 2})
            run.write_rollouts(step, [{"text": str(step)}])
        with run.metrics.open("a") as file:
            file.write('{"step": 2, "x": 0.')
        run.truncate_after(2)
        run.append_metrics({"step": 3, "x": 9})
        assert metrics(run) == [{"step": 1, "x": 0.5}, {"step": 2, "x": 1.0}, {"step": 3, "x": 9}]
        assert run.metrics.read_bytes().count(b"\n") == 3
        assert sorted(path.name for path in run.rollouts.iterdir()) == ["step_00000001.jsonl", "step_00000002.jsonl"]
    assert '{"step": 2, "x": 0.' in caplog.text


def test_a_last_line_that_lacks_only_its_newline_is_kept(tmp_path):
    with RunDir.open(tmp_path, "never") as run:
        run.metrics.write_text('{"step": 1}\n{"step": 2}')
        run.truncate_after(2)
        assert run.metrics.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_metrics_line_cut_short_by_a_full_disk_is_taken_back(tmp_path):
    with RunDir.open(tmp_path, "never") as run:
        run.append_metrics({"step": 1})
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))  # 12 bytes are there, 8 more fit
        try:
            with pytest.raises(OSError, match=r"metrics\.jsonl: File too large \(\d+ bytes free there\)") as raised:
                run.append_metrics({"step": 2, "reward/mean": 0.5})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert raised.value.errno == errno.EFBIG
        assert run.metrics.read_text() == '{"step": 1}\n'


# ---- other files


def test_rollouts_are_one_object_a_line_and_replace_an_earlier_try(tmp_path):
    with RunDir.open(tmp_path, "never") as run:
        run.write_rollouts(7, [{"old": 1}] * 3)
        path = run.write_rollouts(7, [{"tokens": torch.tensor([1, 2]), "reward": float("nan")}, {"parts": {"a": 0.5}}])
    assert path == tmp_path / "rollouts" / "step_00000007.jsonl"
    assert [strict(line) for line in path.read_text().splitlines()] == [
        {"tokens": [1, 2], "reward": None},
        {"parts": {"a": 0.5}},
    ]


def test_a_failed_write_leaves_the_old_content(tmp_path, monkeypatch):
    with RunDir.open(tmp_path, "never") as run:
        run.write_json("summary.json", {"pass@1": np.float64(0.25)})

        def refuse(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch, pytest.raises(OSError, match=r"summary\.json: No space left.*bytes free"):
            patch.setattr(os, "fsync", refuse)
            run.write_json("summary.json", {"pass@1": 0.5})
    assert strict((tmp_path / "summary.json").read_text()) == {"pass@1": 0.25}
    assert not list(tmp_path.glob(".tmp-*"))


def test_wall_time_adds_up_over_resumes(tmp_path):
    with RunDir.open(tmp_path, "never") as run:
        run.continue_clock(1000.0)
        first = run.elapsed_s
        time.sleep(0.02)
        assert 1000.0 <= first < 1060.0
        assert run.elapsed_s - first >= 0.02


def test_a_process_that_follows_another_writes_nothing(tmp_path):
    with RunDir.open(tmp_path / "run", "never") as run:
        before = sorted(path.name for path in run.path.rglob("*"))
        with RunDir.follow(run.path, None) as follower:
            follower.append_metrics({"step": 1})
            follower.write_text("config.yaml", "x")
            follower.write_json("summary.json", {})
            follower.write_rollouts(1, [{"step": 1}])
            follower.truncate_after(-1)
        assert sorted(path.name for path in run.path.rglob("*")) == before
        run.append_metrics({"step": 1})  # the lock is still the first one's
        assert metrics(follower) == [{"step": 1}]


def test_a_machine_that_does_not_see_the_folder_is_told_so(tmp_path):
    with pytest.raises(ValueError, match="on a disk that all machines share"):
        RunDir.follow(tmp_path / "elsewhere", None)
