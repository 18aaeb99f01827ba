"""The worker: answers one client's requests with what an engine samples. How it is launched is launch_*.py's."""

from __future__ import annotations

import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_pg.rollout import protocol
from rlhf_pg.rollout.engine import Engine
from rlhf_pg.rollout.protocol import Header, StaleWeightsError
from rlhf_pg.types import Completion

REPORT_S = 0.05  # at least, between two messages to a client that waits: completions, progress, and a sign of life
REFUSED = (ValueError, FloatingPointError, StaleWeightsError)  # faults of a request, which leave the engine as it was


class Cancelled(BaseException):
    """What is being sampled is no longer wanted."""


class ClientGone(BaseException):
    """The client is gone: no engine may survive this, whatever it does with exceptions."""


class EngineWorker:
    """Serves `engine`, which samples from `model`, over one connection.

    `shared`: tensors by name that the client writes new weights into; None: it sends them. A completion is held back
    until the client waits for it, so that sampling never stops for a client that is not reading.
    """

    def __init__(
        self,
        connection: Connection,
        engine: Engine,
        model: PreTrainedModel,
        shared: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.connection, self.engine, self.shared = connection, engine, shared
        self.device, self.vocabulary = model.device.type, model.config.get_text_config().vocab_size
        self.received: list[tuple[str, Tensor]] = []  # weights that came ahead of their request
        self.request: Header = {}
        self.streaming, self.reported = False, 0.0  # whether the client waits; when it was last sent something
        self.rows: list[protocol.Row] = []  # finished, not sent yet

    def serve(self) -> None:
        """Answer requests until the client leaves (EOFError, OSError), or the engine breaks: its error is raised."""
        while True:
            self.connection.poll(None)  # between two requests a client may take its time, whatever a read may take
            header, tensors = protocol.receive(self.connection)
            if header["do"] == "weights":
                self.received.extend(tensors.items())
            elif header["do"] == "generate":
                self._answer(header, tensors)  # any other message is about a request that was answered meanwhile

    def _answer(self, header: Header, tensors: dict[str, Tensor]) -> None:
        self.request, self.streaming, self.rows = header, header["stream"], []
        broken: Exception | None = None
        started = time.monotonic()
        try:
            self._generate(header, tensors)
            answer: Header = {"seconds": time.monotonic() - started}
        except Cancelled:
            answer = {"cancelled": True}
        except ClientGone:
            raise EOFError from None
        except Exception as error:
            answer = protocol.pack_error(error)
            broken = None if isinstance(error, REFUSED) else error
        self._send(answer | {"last": True})
        if broken is not None:
            raise broken

    def _generate(self, header: Header, tensors: dict[str, Tensor]) -> None:
        if header["vocabulary"] != self.vocabulary:
            raise ValueError(
                f"the engine's model has {self.vocabulary} tokens, the trainer's {header['vocabulary']}: start both "
                "from one model"
            )
        if header["threads"] is not None:
            torch.set_num_threads(header["threads"])
        self._load_weights(header)
        with protocol.autocast(header, self.device):
            self.engine.generate(*protocol.unpack_request(header, tensors), self._progress, self._finished)

    def _load_weights(self, header: Header) -> None:
        """Give the engine the weights that came with a request, or make sure that it has those of its version."""
        weights, self.received = self.received, []
        if self.shared is not None:
            weights = [(name, self.shared[name]) for name in header["shared"]]
        if header["new_weights"]:
            self.engine.load_weights(weights, header["version"])
        elif header["version"] != self.engine.version:
            raise StaleWeightsError(f"it has weights of version {self.engine.version}, not {header['version']}")

    def _finished(self, prompt: int, sample: int, completion: Completion) -> None:
        self.rows.append(((prompt, sample), completion))

    def _progress(self, done: int, total: int, tokens: int) -> None:
        """Between two steps of the engine: see whether the request is still wanted, and send what is waited for."""
        try:
            if self.connection.poll(0):
                message, _ = protocol.receive(self.connection)
                if message["do"] == "cancel":
                    raise Cancelled
                self.streaming = True
            if self.streaming and time.monotonic() - self.reported > REPORT_S:
                self._send({"progress": [done, total, tokens]})
        except (EOFError, OSError):
            raise ClientGone from None

    def _send(self, header: dict[str, Any]) -> None:
        packed, tensors = protocol.pack_rows(self.rows)
        about = {"id": self.request["id"], "version": self.engine.version}
        protocol.send(self.connection, about | header | packed, tensors)
        self.rows, self.reported = [], time.monotonic()
