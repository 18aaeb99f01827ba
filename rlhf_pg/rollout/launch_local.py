"""A worker in a second process, so that rollouts can be sampled while this one trains (`rollout.overlap`).

Weights travel through shared memory, all else over a private socket pair. Pickled is only the model's structure, once,
from this process to the one it starts. The second process ends when this one does: it sees the connection close, while
it waits for a request and between decode steps.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import IO, Any

import torch
from transformers import PreTrainedModel

from rlhf_pg.models.packed_attention import base_attention
from rlhf_pg.rollout import protocol
from rlhf_pg.rollout.attention import embedding_weight
from rlhf_pg.rollout.engine import build
from rlhf_pg.rollout.engine_client import EngineClient, Worker
from rlhf_pg.rollout.engine_worker import EngineWorker
from rlhf_pg.rollout.weights import SharedWeights, fill, structure_of, tensors_of

GOODBYE_S = 5.0  # for a process whose connection is closed to end
BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from rlhf_pg.rollout.launch_local import main; main()"


def local_engine(
    name: str,
    model: PreTrainedModel,
    eos_ids: Sequence[int],
    slots: int = 256,
    options: Mapping[str, Any] | None = None,
    **facts: Any,
) -> EngineClient:
    """Return the engine that `engine.build` makes of these arguments, in a second process on a copy of `model`."""
    settings = {"engine": name, "eos_ids": tuple(eos_ids), "slots": slots, "options": options or {}, "facts": facts}
    return EngineClient(model, eos_ids, LocalWorker(model, settings))


class LocalWorker(Worker):
    """See `Worker`: the second process.

    On the CPU the cores are shared out: until `close`, this process computes with half of the threads it had (rounded
    up) and rollouts started ahead with the other half (one at least); those that are waited for from the beginning get
    all. On a machine with several GPUs, the second process takes the one after this process's.
    """

    name, attempts, timeout_s, engine_error = "the rollout process", 1, None, RuntimeError

    def __init__(self, model: PreTrainedModel, settings: Mapping[str, Any]) -> None:
        tensors = tensors_of(model)
        self.shared = shared = SharedWeights(tensors)
        shared.write(tensors, tensors)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._file, self._threads, self._closed = shared.file, torch.get_num_threads(), False
        device = _other_device(embedding_weight(model).device)
        if device.type == "cpu":
            torch.set_num_threads(self._threads - self._threads // 2)
        structure = pickle.dumps(structure_of(model))
        self.process, connection = spawn(shared.file, self._log)
        self._connection: Connection | None = connection
        with suppress(OSError):  # it has ended already: the first request tells
            protocol.send(connection, {**settings, "device": str(device), "file": shared.file})
            connection.send_bytes(structure)

    def connect(self) -> Connection:
        """Return the one connection, once."""
        if self._connection is None:
            raise EOFError
        connection, self._connection = self._connection, None
        return connection

    def failure(self, faults: Sequence[str]) -> RuntimeError:
        """Return an error with the last words of the process."""
        if self._closed:
            return RuntimeError(f"{self.name} was closed: build another engine")
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(GOODBYE_S)
        self.process.kill()  # nobody could talk to it any more
        code = self.process.wait()
        end = f"exit status {code}" if code >= 0 else signal.Signals(-code).name
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - 4000))
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        if not code:  # it ended because it was left
            return RuntimeError(f"{self.name} failed: {faults[-1]}")
        return RuntimeError(f"{self.name} ended with {end}{': ' + lines[-1][:500] if lines else ''}")

    def threads(self, *, waited: bool) -> int:
        return self._threads if waited else max(1, self._threads // 2)

    def close(self) -> None:
        """End the process and take its threads back."""
        if self._closed:
            return
        self._closed = True
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self.process.kill()
        self.process.wait()
        self._log.close()
        os.close(self._file)
        torch.set_num_threads(self._threads)


def spawn(file: int, log: IO[bytes]) -> tuple[subprocess.Popen, Connection]:
    """Start the second process, which inherits this file descriptor, and return it with the connection to it."""
    parent_end, child_end = socket.socketpair()
    path = json.dumps([p or os.getcwd() for p in sys.path])
    with child_end:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", BOOT, path, str(child_end.fileno())],
            pass_fds=[child_end.fileno(), file],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for this process to act on
        )
    return process, Connection(parent_end.detach())


def main() -> None:
    """Be the second process: serve the connection whose file descriptor is the second argument."""
    code = 0
    try:
        serve(Connection(int(sys.argv[2])))
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # at once: whoever sees the connection close can then ask how it ended


def serve(connection: Connection) -> None:
    """Build what the first messages describe and answer requests until the other end closes."""
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the trainer is gone
        settings, _ = protocol.receive(connection)
        model: PreTrainedModel = pickle.loads(connection.recv_bytes())  # from the process that started this one
        config = model.config.get_text_config()
        config._attn_implementation = base_attention(config)  # packed attention is registered only in the trainer
        shared = SharedWeights(tensors_of(model), settings["file"]).tensors
        device = torch.device(settings["device"])
        fill(model, shared if device.type == "cpu" else {name: t.to(device) for name, t in shared.items()})
        eos_ids, slots = settings["eos_ids"], settings["slots"]
        engine = build(settings["engine"], model, eos_ids, slots, settings["options"], **settings["facts"])
        # On the CPU the model is the shared memory: its own tensors are "copied" over themselves, which costs nothing.
        source = tensors_of(model) if device.type == "cpu" else shared
        EngineWorker(connection, engine, model, source).serve()


def _other_device(device: torch.device) -> torch.device:
    """Return where the second process computes: on the next GPU, which may be the same one, or on the CPU."""
    if device.type == "cpu":
        return device
    return torch.device(device.type, ((device.index or 0) + 1) % torch.get_device_module(device).device_count())
