"""Two runs in one folder, and a disk that is really full or read-only."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from rlhf_pg.storage.run_dir import RunDir

# ---- two runs in one folder


@contextmanager
def forked(work):
    """Run `work(ready)` in a child process until the block ends; it starts once `ready()` was called."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work(lambda: os.write(writing, b"r"))
            time.sleep(60)
        finally:
            os._exit(1)
    assert os.read(reading, 1) == b"r"
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)
        os.close(writing)


def test_a_second_live_run_is_refused_by_pid_and_a_dead_ones_lock_is_taken(tmp_path):
    def hold(ready):
        RunDir.open(tmp_path, "auto")
        ready()

    with forked(hold) as child:
        for _ in range(2):
            with pytest.raises(ValueError, match=rf"in use by process {child} on \S+: .*another run\.dir"):
                RunDir.open(tmp_path, "auto")
    RunDir.open(tmp_path, "auto").close()


def test_a_second_open_in_the_same_process_is_refused_until_close(tmp_path):
    run = RunDir.open(tmp_path, "auto")
    with pytest.raises(ValueError, match=f"in use by process {os.getpid()}"):
        RunDir.open(tmp_path, "auto")
    run.close()
    run.close()
    RunDir.open(tmp_path, "auto").close()


def test_a_forked_worker_that_outlives_its_run_does_not_keep_the_lock(tmp_path):
    run = RunDir.open(tmp_path, "auto")
    with forked(lambda ready: ready()):
        with pytest.raises(ValueError, match="in use"):  # the worker's copy is gone, ours still holds
            RunDir.open(tmp_path, "auto")
        run.close()
        RunDir.open(tmp_path, "auto").close()


# ---- a real small disk

SMALL_DISK = """
import errno, json, subprocess, sys
from pathlib import Path
import torch
from rlhf_pg.storage import checkpoint
from rlhf_pg.storage.run_dir import RunDir

def refused(work):
    try:
        work()
    except (OSError, ValueError) as error:
        return [type(error).__name__, getattr(error, "errno", None), str(error)]

disk = Path(sys.argv[1])
run = RunDir.open(disk / "run", "never")
run.append_metrics({"step": 1})
small, big = ({"weights": {"w": torch.ones(n)}} for n in (1_000, 100_000))
checkpoint.save(run.checkpoints, 1, small, {"step": 1}, 2)
seen = {"checkpoint": refused(lambda: checkpoint.save(run.checkpoints, 2, big, {"step": 2}, 2))}
seen["after"] = checkpoint.load(checkpoint.latest(run.checkpoints))[1]["step"]
try:
    (disk / "filler").write_bytes(b"x" * 1_000_000)
except OSError:
    pass
row = {"step": 2, "text": "x" * 8000}
seen["metrics"] = refused(lambda: [run.append_metrics(row) for _ in range(3)])
seen["lines"] = sorted({len(line) for line in run.metrics.read_text().splitlines()})
run.close()
seen["open"] = refused(lambda: RunDir.open(disk / "run", "must"))
(disk / "filler").unlink()
subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
seen["read_only"] = refused(lambda: RunDir.open(disk / "run", "must"))
seen["read_only_save"] = refused(lambda: checkpoint.save(disk / "run/checkpoints", 3, small, {}, 2))
seen["still"] = checkpoint.load(checkpoint.latest(disk / "run/checkpoints"))[1]["step"]
print(json.dumps(seen))
"""


def test_on_a_real_full_and_read_only_disk_errors_are_clear_and_nothing_is_lost(tmp_path):
    mount = 'mount -t tmpfs -o size=300k none "$0" || exit 77; exec "$@"'
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount, tmp_path, sys.executable, "-c", SMALL_DISK]
    try:
        done = subprocess.run([*command, tmp_path], capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("no unshare command")
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("this system lets nobody mount a small disk")
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    name, code, message = seen["checkpoint"]
    assert (name, code) == ("OSError", errno.ENOSPC)
    assert "step_00000002" in message and "bytes free" in message
    assert seen["after"] == seen["still"] == 1
    assert seen["metrics"][1] == errno.ENOSPC and "metrics.jsonl" in seen["metrics"][2]
    assert seen["lines"][0] == len('{"step": 1}') and seen["lines"][1:] in ([], [8024])
    assert seen["open"][0] == "ValueError" and "No space left" in seen["open"][2]
    assert seen["read_only"][0] == "ValueError" and "Read-only" in seen["read_only"][2]
    assert seen["read_only_save"][1] == errno.EROFS and "step_00000003" in seen["read_only_save"][2]
