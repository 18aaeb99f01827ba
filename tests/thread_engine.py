"""A rollout process that is a thread, for tests: the same code and wire, without the seconds that imports take."""

from __future__ import annotations

import pickle
import socket
import threading
from multiprocessing.connection import Connection
from typing import Any

from rlhf_pg.rollout import child, protocol
from rlhf_pg.rollout.process import ProcessEngine
from rlhf_pg.rollout.weights import structure_of


class ThreadAsProcess(threading.Thread):
    """What the engine asks of a process. The thread ends when the connection closes."""

    def __init__(self, connection: Connection):
        super().__init__(target=child.serve, args=(connection,), daemon=True)
        self.start()

    def kill(self) -> None: ...

    def wait(self) -> int:
        self.join()
        return 0


def launch_thread(engine: ProcessEngine, settings: dict[str, Any]):
    mine, theirs = socket.socketpair()
    connection = Connection(mine.detach())
    process = ThreadAsProcess(Connection(theirs.detach()))
    protocol.send(connection, settings | {"device": "cpu", "file": engine._shared.file})
    connection.send_bytes(pickle.dumps(structure_of(engine.model)))
    return process, connection
