"""No kill and no full disk, at whatever moment, costs more than the save in progress."""

import errno
import os
import random
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
import torch

from rlhf_pg.storage import checkpoint
from tests.storage.one_value import save, value_of

FILES = ("weights.safetensors", "optimizer.safetensors", "state.json", "manifest.json")


# ---- the disk refuses


class Dead(BaseException):
    """Stands for SIGKILL: from here on the process changes nothing."""


class Faults:
    """Lets `n` calls that change the disk through, then fails: the next one, or it and all later ones."""

    def __init__(self, monkeypatch):
        self.left = -1  # -1 = off
        self.struck = False
        self.error: BaseException = Dead()
        self.for_good = True
        for name in ("write", "fsync", "rename", "replace", "mkdir", "unlink", "rmdir", "open"):
            monkeypatch.setattr(os, name, self._wrap(getattr(os, name)))

    def _wrap(self, real):
        def call(*args, **kwargs):
            if self.left == 0:
                self.left = 0 if self.for_good else -1
                self.struck = True
                raise self.error
            self.left -= self.left > 0
            return real(*args, **kwargs)

        return call

    @contextmanager
    def after(self, calls: int, error: BaseException, for_good: bool):
        self.left, self.error, self.for_good, self.struck = calls, error, for_good, False
        try:
            yield
        finally:
            self.left = -1


@pytest.mark.parametrize("step", [3, 2], ids=["new step", "same step again"])
@pytest.mark.parametrize("fault", ["killed", "full once", "full for good"])
def test_a_fault_at_any_system_call_leaves_the_old_or_the_new_checkpoint(tmp_path, monkeypatch, step, fault):
    error = Dead() if fault == "killed" else OSError(errno.ENOSPC, "No space left on device")
    faults = Faults(monkeypatch)
    seen = set()
    for calls in range(1000):
        directory = tmp_path / str(calls)
        save(directory, 1, 1)
        save(directory, 2, 2)
        try:
            with faults.after(calls, error, for_good=fault != "full once"):
                save(directory, step, 9)
        except Dead:
            pass
        except OSError as raised:
            assert raised.errno == errno.ENOSPC
            assert str(directory) in str(raised)
            assert "bytes free" in str(raised) or "cannot remove" in str(raised)
        if not faults.struck:
            break
        seen.add(value_of(checkpoint.latest(directory)))
        save(directory, step + 1, 10)  # and the next save finds nothing in its way
        assert value_of(checkpoint.latest(directory)) == 10
        assert not [path for path in directory.iterdir() if not path.name[5:].isdigit()]
    assert calls > 25
    assert seen == {2, 9}


def test_everything_is_on_disk_before_it_gets_its_name_and_the_name_before_save_returns(tmp_path, monkeypatch):
    events = []
    fsync, rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd)))
    monkeypatch.setattr(os, "rename", lambda a, b: (events.append("rename"), rename(a, b)))
    save(tmp_path, 1, 1)
    unfinished = tmp_path / ".tmp-step_00000001"
    *before, named, after = events
    assert set(before) == {str(unfinished), *(str(unfinished / name) for name in FILES)}
    assert (named, after) == ("rename", str(tmp_path))


@contextmanager
def file_size_limit(size: int):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_the_kernel_cuts_short_is_an_error_and_costs_nothing(tmp_path):
    save(tmp_path, 1, 1)
    big = {"weights": {"w": torch.zeros(100_000)}}
    with (
        file_size_limit(50_000),
        pytest.raises(OSError, match=r"step_00000002: File too large \(\d+ bytes free there\)"),
    ):
        checkpoint.save(tmp_path, 2, big, {}, 2)
    assert value_of(checkpoint.latest(tmp_path)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]


# ---- SIGKILL


KILLED = """
import os, sys
from pathlib import Path
import torch
from rlhf_pg.storage import checkpoint

def run(directory, done):
    newest = checkpoint.latest(directory)
    value = checkpoint.load(newest)[1]["value"] if newest else 0
    print(os.getpid(), flush=True)
    while True:
        value += 1
        tensors = {
            "weights": {"w": torch.full((64,), float(value)), "bulk": torch.zeros(100_000)},
            "optimizer": {"m": torch.full((8,), value)},
        }
        checkpoint.save(directory, (value + 1) // 2, tensors, {"value": value}, 2)  # each step twice
        os.pwrite(done, b"%20d" % value, 0)

directory = Path(sys.argv[1])
done = os.open(sys.argv[2], os.O_RDWR | os.O_CREAT)
for line in sys.stdin:
    child = os.fork()  # torch is imported once; each child is a process of its own
    if child == 0:
        run(directory, done)
    os.waitpid(child, 0)
    print("dead", flush=True)
"""


def test_sigkill_at_any_moment_loses_no_finished_checkpoint(tmp_path, caplog):
    directory, done = tmp_path / "checkpoints", tmp_path / "done"
    server = subprocess.Popen(
        [sys.executable, "-c", KILLED, directory, done], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert server.stdin and server.stdout
    chance = random.Random(7)
    directory.mkdir()
    done.write_bytes(b"%20d" % 0)
    finished, unfinished, last = 0, 0, 0
    for _ in range(25):
        server.stdin.write("go\n")
        server.stdin.flush()
        child = int(server.stdout.readline())
        goal = finished + chance.randrange(3)
        while int(done.read_bytes()) < goal:
            time.sleep(0.001)
        time.sleep(chance.uniform(0.0, 0.015))
        os.kill(child, signal.SIGKILL)
        assert server.stdout.readline() == "dead\n"
        unfinished += any(not path.name[5:].isdigit() for path in directory.iterdir())
        finished = int(done.read_bytes())
        newest = checkpoint.latest(directory)
        value = value_of(newest) if newest else 0
        assert value >= max(finished, last)
        for path in directory.glob("step_*"):
            value_of(path)
        last = value
    server.stdin.close()
    assert server.wait(10) == 0
    assert unfinished >= 3  # the kills did land inside saves
    assert not caplog.records
