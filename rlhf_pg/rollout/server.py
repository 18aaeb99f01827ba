"""The serving side of `rollout.server`: one engine, one trainer at a time, over a socket (link.py, wire.py).

    hello                            -> id of this server, version of its weights, vocabulary
    push id version, tensor ..., end -> id version, once the engine has them
    generate id version ...          -> progress and finished rows, then done; each with id and version

Requests carry an id and the version they want; every answer names both. What the engine refuses is an answer; what
breaks the engine is answered and then ends the server, for whoever watches it to start another.
"""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from rlhf_pg.rollout import link, protocol
from rlhf_pg.rollout.engine import Engine
from rlhf_pg.types import Completion

HANDSHAKE_S = 10.0
SEND_S = 60.0  # that a trainer may leave what was sent to it unread
BEAT_S = 1.0  # between two signs of life while sampling
REFUSED = (ValueError, FloatingPointError)  # of a request, which leave the engine as it was


class Server:
    """Serves `engine`, which samples from `model`, to trainers that know the token of `address`, one at a time."""

    def __init__(self, engine: Engine, model: PreTrainedModel, listening: socket.socket, address: link.Address) -> None:
        self.engine, self.listening, self.address = engine, listening, address
        self.vocabulary, self.device = model.config.get_text_config().vocab_size, model.device.type
        self.id = secrets.token_hex(8)  # another one has other weights, whatever their version says

    def serve(self, say: Callable[[str], None] = print) -> None:
        """Until the engine breaks, which is raised."""
        while True:
            theirs, peer = self.listening.accept()
            try:
                connection = link.accept(theirs, self.address.token, HANDSHAKE_S)
            except (OSError, EOFError) as error:
                say(f"refused {peer[0]}: {error}")
                continue
            say(f"trainer from {peer[0]}")
            try:
                _Visit(self, connection).serve()
            except (EOFError, OSError):
                say("trainer left")
            finally:
                connection.close()


class _Visit:
    """One connection."""

    def __init__(self, server: Server, connection: Connection) -> None:
        self.server, self.engine, self.connection = server, server.engine, connection
        self.rows: list[protocol.Row] = []  # finished, not sent yet
        self.beat = 0.0  # when something was last sent

    def serve(self) -> None:
        link.set_deadline(self.connection, None)  # between requests a trainer may think for long
        while True:
            message, tensors = protocol.receive(self.connection)
            link.set_deadline(self.connection, SEND_S)
            match message["do"]:
                case "hello":
                    state = {"id": self.server.id, "version": self.engine.version, "vocabulary": self.server.vocabulary}
                    protocol.send(self.connection, {"hello": state})
                case "push":
                    self._answered(message, lambda m=message: self._push(m))
                case "generate":
                    self._answered(message, lambda m=message, t=tensors: self._generate(m, t))
            link.set_deadline(self.connection, None)

    def _answered(self, message: dict[str, Any], act: Callable[[], dict[str, Any]]) -> None:
        """Do what was asked; its answer, or the error."""
        broken: Exception | None = None
        try:
            answer = act()
        except protocol.Cancelled:
            answer = {"cancelled": True}
        except protocol.Gone:
            raise EOFError from None
        except Exception as error:
            answer = protocol.failure(error)
            broken = None if isinstance(error, REFUSED) else error
        protocol.send(self.connection, {"id": message["id"], "version": self.engine.version, **answer})
        if broken is not None:
            raise broken

    def _push(self, message: dict[str, Any]) -> dict[str, Any]:
        """Take the tensors that follow and give them to the engine."""
        self.engine.load_weights(list(self._tensors(message["id"])), message["version"])
        return {"pushed": True}

    def _tensors(self, number: int) -> Iterator[tuple[str, Tensor]]:
        while True:
            try:
                message, tensors = protocol.receive(self.connection)
            except (EOFError, OSError):
                raise protocol.Gone from None
            if message.get("id") != number or message["do"] not in ("tensor", "end"):
                raise protocol.Gone
            if message["do"] == "end":
                return
            yield message["name"], tensors["values"].view(message["shape"])

    def _generate(self, message: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
        if message["version"] != self.engine.version:
            return {"stale": True}
        self.number, self.rows, started = message["id"], [], time.monotonic()
        with protocol.arithmetic(message, self.server.device):
            self.engine.generate(*protocol.requested(message, tensors), self._progress, self._finished)
        self._send_rows()
        return {"done": True, "seconds": time.monotonic() - started}

    def _finished(self, prompt: int, place: int, completion: Completion) -> None:
        self.rows.append(((prompt, place), completion))

    def _progress(self, done: int, total: int, tokens: int) -> None:
        """Between two steps: send what there is, and look whether it is still wanted."""
        try:
            message = protocol.receive(self.connection)[0] if self.connection.poll(0) else {}
        except (EOFError, OSError):
            raise protocol.Gone from None
        if message.get("do") == "cancel":
            raise protocol.Cancelled
        if self.rows or time.monotonic() - self.beat > BEAT_S:
            self._send_rows([done, total, tokens])

    def _send_rows(self, progress: list[int] | None = None) -> None:
        header: dict[str, Any] = {"id": self.number, "version": self.engine.version, "progress": progress}
        made: dict[str, Tensor] = {}
        if self.rows:
            packed, made = protocol.pack_rows(self.rows)
            header |= packed
        try:
            protocol.send(self.connection, header, **made)
        except (EOFError, OSError):
            raise protocol.Gone from None
        self.rows, self.beat = [], time.monotonic()
