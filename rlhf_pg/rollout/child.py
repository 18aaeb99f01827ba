"""The rollout process: an engine on a copy of the policy, which samples what the trainer asks for (see process.py).

It ends when its end of the connection closes: seen while it waits for a request, and between decode steps.
"""

from __future__ import annotations

import os
import pickle
import sys
import time
import traceback
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_pg.models.packed_attention import base_attention
from rlhf_pg.rollout import protocol
from rlhf_pg.rollout.engine import Engine, build
from rlhf_pg.rollout.weights import SharedWeights, fill, tensors_of
from rlhf_pg.types import Completion


def main() -> None:
    """Serve the connection whose file descriptor is the second argument."""
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
    """Answer requests until the other end closes."""
    try:
        child = Child(connection)
        while True:
            child.answer(*protocol.receive(connection))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the trainer is gone


class Child:
    """The engine and its weights. On the CPU the model is the shared memory; elsewhere it has a copy of its own."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        settings, _ = protocol.receive(connection)
        model: PreTrainedModel = pickle.loads(connection.recv_bytes())  # from the process that started this one
        config = model.config.get_text_config()
        config._attn_implementation = base_attention(config)  # packed attention is registered only in the trainer
        self.device = torch.device(settings["device"])
        self.shared = SharedWeights(tensors_of(model), settings["file"])
        self.copied = self.device.type != "cpu"
        fill(
            model,
            {n: t.to(self.device) for n, t in self.shared.tensors.items()} if self.copied else self.shared.tensors,
        )
        self.live = tensors_of(model)
        self.streaming = False  # whether the trainer waits, and takes rows as they finish
        self.finished: list[protocol.Row] = []  # not sent yet
        eos_ids, slots = settings["eos_ids"], settings["slots"]
        self.engine: Engine = build(settings["engine"], model, eos_ids, slots, settings["options"], **settings["facts"])

    def answer(self, request: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Answer one request with the completions, "cancelled" or "error"."""
        if request["do"] != "generate":
            return  # about what was already answered
        answer: dict[str, Any] = {}
        made: dict[str, Tensor] = {}
        self.streaming, self.finished = False, []
        try:
            started = time.monotonic()
            header, made = protocol.pack(self._generate(request, tensors))
            answer |= {"completions": header, "seconds": time.monotonic() - started}
        except protocol.Cancelled:
            answer["cancelled"] = True
        except protocol.Gone:
            raise EOFError from None
        except Exception as error:
            answer |= protocol.failure(error)
        protocol.send(self.connection, answer, **made)

    def _generate(self, request: dict[str, Any], tensors: dict[str, Tensor]) -> list[list[Completion]]:
        torch.set_num_threads(request["threads"])
        if self.copied:
            with torch.no_grad():
                for name in request["changed"]:
                    self.live[name].copy_(self.shared.tensors[name])
        self.engine.load_weights((), request["version"])
        with protocol.arithmetic(request, self.device.type):
            return self.engine.generate(*protocol.requested(request, tensors), self._progress, self._finished)

    def _finished(self, prompt: int, place: int, completion: Completion) -> None:
        self.finished.append(((prompt, place), completion))

    def _progress(self, done: int, total: int, tokens: int) -> None:
        self.shared.progress[0], self.shared.progress[1], self.shared.progress[2] = done, total, tokens
        try:
            if self.connection.poll(0):
                message, _ = protocol.receive(self.connection)
                if message["do"] == "cancel":
                    raise protocol.Cancelled
                self.streaming = True
            if self.streaming and self.finished:
                header, tensors = protocol.pack_rows(self.finished)
                protocol.send(self.connection, header, **tensors)
                self.finished = []
        except (EOFError, OSError):
            raise protocol.Gone from None
