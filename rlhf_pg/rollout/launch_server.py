"""A worker behind a socket (`rlhf-pg serve`), for one trainer at a time, here or on another machine.

The server writes a file with its address and a token, readable by its owner only; a trainer on another machine needs a
copy of it, or the same file system. Each side proves that it has the token before anything else is read
(`multiprocessing.connection`'s HMAC challenges: MD5 on Python 3.11, SHA-256 from 3.12 on); the token itself never
travels. Nothing is encrypted: between machines, use a network of your own or a tunnel.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from pathlib import Path

from transformers import PreTrainedModel

from rlhf_pg.errors import RunError
from rlhf_pg.rollout.arrived import Fault
from rlhf_pg.rollout.engine import Engine
from rlhf_pg.rollout.engine_client import EngineClient, Worker
from rlhf_pg.rollout.engine_worker import EngineWorker

PROTOCOL = "rlhf_pg rollout 2"  # part of the key: sides that speak different ones do not know each other
TOKEN_BYTES = 32
HANDSHAKE_S = 10.0  # of the server, for each read and write
SEND_S = 60.0  # that a trainer may leave what was sent to it unread
PAUSE_S = 0.5  # between two looks for a server


@dataclass(frozen=True)
class Address:
    """Where a server listens, and the secret it shares with its trainer."""

    host: str
    port: int
    token: str  # hexadecimal

    @classmethod
    def read(cls, file: Path) -> Address:
        """Read what `write` wrote. Raises OSError where there is nothing, ValueError for something else."""
        try:
            content = json.loads(file.read_text())
            return cls(str(content["host"]), int(content["port"]), str(content["token"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file} is not what `rlhf-pg serve` writes: {error}") from error

    def write(self, file: Path) -> None:
        """Replace the file at once, for its owner's eyes only."""
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_name(f".{file.name}.{os.getpid()}")
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
            json.dump(asdict(self), out)
        unfinished.rename(file)

    @property
    def key(self) -> bytes:
        """Return the key of both sides' challenges."""
        return f"{PROTOCOL} {self.token}".encode()

    def connect(self, timeout_s: float) -> Connection:
        """Connect and authenticate; later reads and writes, too, each fail with OSError after `timeout_s`."""
        server = socket.create_connection((self.host, self.port), timeout_s)
        return _authenticated(server, self.key, (answer_challenge, deliver_challenge), timeout_s, timeout_s)

    def accept(self, client: socket.socket) -> Connection:
        """Return the connection of a trainer that knows the token. Raises OSError for anyone else."""
        return _authenticated(client, self.key, (deliver_challenge, answer_challenge), HANDSHAKE_S, SEND_S)


def listen(host: str, port: int) -> tuple[socket.socket, Address]:
    """Return a listening socket, on any free port for 0, and the address with a fresh token that it goes by."""
    listening = socket.create_server((host, port))
    return listening, Address(host, listening.getsockname()[1], secrets.token_hex(TOKEN_BYTES))


def serve(
    engine: Engine,
    model: PreTrainedModel,
    listening: socket.socket,
    address: Address,
    say: Callable[[str], None] = print,
) -> None:
    """Serve `engine`, which samples from `model`, one trainer at a time, until the engine breaks, which is raised.

    Its last client is told before: whoever watches the server can start another, for which that client waits.
    """
    while True:
        client, (host, *_) = listening.accept()
        try:
            connection = address.accept(client)
        except OSError as error:
            say(f"refused {host}: {error}")
            continue
        say(f"trainer from {host}")
        with connection:
            try:
                EngineWorker(connection, engine, model).serve()
            except (EOFError, OSError):
                say("trainer left")


def served_engine(
    model: PreTrainedModel,
    eos_ids: Sequence[int],
    file: Path,
    *,
    dtype: str = "float32",
    context: int | None = None,
    timeout_s: float = 300.0,
) -> EngineClient:
    """Return the engine of the server that writes `file`; the rest is `EngineClient`'s and `ServedWorker`'s."""
    return EngineClient(model, eos_ids, ServedWorker(file, timeout_s), dtype=dtype, context=context)


@dataclass
class ServedWorker(Worker):
    """See `Worker`: the server of a file. RunError after three attempts: the run is then saved and stops."""

    file: Path
    timeout_s: float | None = 300.0  # of which it gives a sign several times a second while it samples

    name, attempts, engine_error, shared = "the rollout server", 3, Fault, None

    def connect(self) -> Connection:
        """Wait for the server, which writes another address if it is started again, and connect."""
        timeout_s = self.timeout_s or 0.0
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return Address.read(self.file).connect(timeout_s)
            except OSError as error:
                if time.monotonic() > deadline:
                    raise Fault(f"no server there after {timeout_s:g} s ({error})") from error
                time.sleep(PAUSE_S)

    def failure(self, faults: Sequence[str]) -> RunError:
        return RunError(f"{self.name} of {self.file} failed {len(faults)} times: {'; then '.join(faults)}")

    def threads(self, *, waited: bool) -> None:
        return None

    def close(self) -> None:
        """Do nothing: the server goes on."""


def _authenticated(
    peer: socket.socket, key: bytes, challenges: Sequence[Callable], timeout_s: float, later_s: float
) -> Connection:
    """Return the socket as a connection once both sides have proved that they have the key, in this order.

    A read or write raises OSError when it waits longer than `timeout_s` meanwhile, or than `later_s` afterwards.
    """
    with peer:
        peer.setblocking(True)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        _set_deadline(peer, timeout_s)
        connection = Connection(os.dup(peer.fileno()))
        try:
            for challenge in challenges:
                challenge(connection, key)
        except (AuthenticationError, AssertionError, EOFError) as error:  # Python 3.11 asserts that it is a challenge
            connection.close()
            raise ConnectionRefusedError(
                "the other side does not know the token of this server, or has another version of this package"
            ) from error
        except BaseException:
            connection.close()
            raise
        _set_deadline(peer, later_s)
        return connection


def _set_deadline(peer: socket.socket, timeout_s: float) -> None:
    """Set how long the kernel lets a read or write wait; also of descriptors that `os.dup` returned before."""
    seconds = int(timeout_s)
    timeval = struct.pack("ll", seconds, max(0 if seconds else 1, int((timeout_s - seconds) * 1e6)))
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        peer.setsockopt(socket.SOL_SOCKET, option, timeval)
