"""How a trainer and a rollout server find and trust each other: a file with address and token, and a handshake.

The server writes the file, readable by its owner only; a trainer on another machine needs a copy of it, or the same
file system. Either side proves that it knows the token (HMAC-SHA256 of the other's random bytes) before anything else
is read; the token itself never travels. Nothing is encrypted: between machines, use a network of your own or a tunnel.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import socket
import struct
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path

PROTOCOL = b"rlhf_pg rollout 1 "
BYTES = 32  # of a challenge


@dataclass(frozen=True)
class Address:
    """Where a server listens, and the secret it shares with its trainer."""

    host: str
    port: int
    token: str  # hexadecimal

    @classmethod
    def read(cls, file: Path) -> Address:
        """Raises OSError where there is none, ValueError for one that is not whole."""
        try:
            found = json.loads(file.read_text())
            return cls(str(found["host"]), int(found["port"]), str(found["token"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file} is not what `rlhf-pg serve` writes: {error}") from error

    def write(self, file: Path) -> None:
        """Replace the file at once, for its owner's eyes only."""
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_name(f".{file.name}.{os.getpid()}")
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
            json.dump(asdict(self), out)
        unfinished.rename(file)

    def connect(self, timeout_s: float) -> Connection:
        """A connection whose reads and writes each fail with OSError after `timeout_s`."""
        mine = socket.create_connection((self.host, self.port), timeout_s)
        connection = with_deadline(mine, timeout_s)
        try:
            _prove(connection, self.token, first=False)
        except EOFError:
            connection.close()
            raise ConnectionRefusedError("it ended the handshake: is the file of another server?") from None
        except BaseException:
            connection.close()
            raise
        return connection


def listen(host: str, port: int) -> tuple[socket.socket, Address]:
    """A listening socket, any free port for 0, and the address with a fresh token that it goes by."""
    listening = socket.create_server((host, port))
    return listening, Address(host, listening.getsockname()[1], secrets.token_hex(BYTES))


def accept(theirs: socket.socket, token: str, timeout_s: float) -> Connection:
    """The connection of a trainer that knows the token. Raises OSError or EOFError for anyone else."""
    connection = with_deadline(theirs, timeout_s)
    try:
        _prove(connection, token, first=True)
    except BaseException:
        connection.close()
        raise
    return connection


def with_deadline(made: socket.socket, timeout_s: float | None) -> Connection:
    """The socket as a connection; a read or write that waits longer than `timeout_s` raises OSError."""
    made.setblocking(True)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection = Connection(made.detach())
    set_deadline(connection, timeout_s)
    return connection


def set_deadline(connection: Connection, timeout_s: float | None) -> None:
    """Change the deadline of reads and writes; None waits for ever."""
    whole = 0 if timeout_s is None else int(timeout_s)
    part = 0 if timeout_s is None else max(0 if whole else 1, int((timeout_s - whole) * 1e6))
    with socket.socket(fileno=os.dup(connection.fileno())) as same:
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            same.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", whole, part))


def _prove(connection: Connection, token: str, *, first: bool) -> None:
    """Ask the other side to prove that it knows the token, and prove it; the server is asked second."""
    for asking in (first, not first):
        if asking:
            nonce = secrets.token_bytes(BYTES)
            connection.send_bytes(PROTOCOL + nonce)
            if not hmac.compare_digest(connection.recv_bytes(BYTES), _answer(token, nonce, server=not first)):
                raise ConnectionRefusedError("the other side does not know the token of this server")
        else:
            asked = connection.recv_bytes(len(PROTOCOL) + BYTES)
            if not asked.startswith(PROTOCOL):
                raise ConnectionRefusedError("the other side speaks another protocol, or another version of it")
            connection.send_bytes(_answer(token, asked.removeprefix(PROTOCOL), server=first))


def _answer(token: str, nonce: bytes, *, server: bool) -> bytes:
    """Of one side to the other's question. The sides differ: asking a question back does not answer it."""
    side = b"server" if server else b"trainer"
    return hmac.new(bytes.fromhex(token), side + nonce, hashlib.sha256).digest()
