"""A second process that is a thread, for tests: the same code and messages, without the seconds that imports take."""

from __future__ import annotations

import socket
import threading
from multiprocessing.connection import Connection

from rlhf_pg.rollout import launch_local


class ThreadAsProcess(threading.Thread):
    """What `LocalWorker` wants of a process. The thread ends when the connection closes."""

    def __init__(self, connection: Connection):
        super().__init__(target=self._serve, args=(connection,), daemon=True)
        self.start()

    def _serve(self, connection: Connection) -> None:
        try:
            launch_local.serve(connection)
        except Exception:  # of the engine: the client has been told
            pass
        finally:
            connection.close()

    def kill(self) -> None: ...

    def wait(self, timeout: float | None = None) -> int:
        self.join(timeout)
        return 0


def spawn_thread(file: int, log: object):
    parent_end, child_end = socket.socketpair()
    return ThreadAsProcess(Connection(child_end.detach())), Connection(parent_end.detach())
