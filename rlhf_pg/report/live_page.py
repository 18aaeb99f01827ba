"""The report of a run that may still be going, served to a browser on this machine."""

from __future__ import annotations

import difflib
import errno
import json
import os
import sys
import threading
import time
from dataclasses import asdict, dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from rlhf_pg.display.figures import duration, number
from rlhf_pg.display.text import visible
from rlhf_pg.report import write_report
from rlhf_pg.report.run_record import RunRecord, read
from rlhf_pg.storage.run_dir import written_by

ADDRESS = "127.0.0.1"
NAMES = (ADDRESS, "localhost")  # by which a browser may ask: not by a name that a foreign site points to this address
FILES = ("metrics.jsonl", "eval.jsonl", "summary.json", "run.json", "config.yaml", "rollouts", "model/config.json")
POLL_S = 2.0  # between two looks of a page
BUSY = 0.1  # share of the time that may go into writing the page, beside a run on the same cores
SILENT_S = 120.0  # after which the time of the last step is said
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
Status = Literal["waiting", "running", "finished", "stopped", "missing"]


@dataclass(frozen=True)
class State:
    """What a page asks for again and again. `version`: of the page that is due; `wait_s`: seconds to the next look."""

    status: Status
    text: str
    detail: str
    version: str
    wait_s: float


class LiveRun:
    """A run's folder, which may not exist yet and may vanish, and the latest page about it."""

    def __init__(self, path: Path) -> None:
        """Raises ValueError when `path` exists and holds no run."""
        self.path = path
        self.seen = path.exists()
        if self.seen:
            read(path)
        self._lock = threading.Lock()
        self._version, self._page, self._render_s = "", b"", 0.0
        self._record: tuple[str, RunRecord] | None = None  # as read when the files were so

    def state(self) -> State:
        """Look at the folder."""
        status, text, detail = self._status()
        version = self._files() if status not in ("waiting", "missing") else self._version or "waiting"
        return State(status, text, detail, version, max(POLL_S, self._render_s / BUSY))

    def page(self) -> bytes:
        """Return the page, written anew if files have changed; of a folder that is not there, as it was last."""
        with self._lock:
            version = self.state().version
            if version != self._version:
                started = time.monotonic()
                try:
                    page = write_report.single(read(self.path))
                except (OSError, ValueError):  # not there yet, or files went meanwhile: the next look shows them
                    if self._page:
                        return self._page
                    page = write_report.single(RunRecord(self.path, self.path.resolve().name))
                self._page = write_report.html(page, live=version)
                self._version, self._render_s = version, time.monotonic() - started
            return self._page

    def _status(self) -> tuple[Status, str, str]:
        name = visible(str(self.path))
        try:
            run = self._read()
        except (OSError, ValueError):
            if self.seen:
                return "missing", "The folder has vanished.", f"This is the last that was in {name}."
            return "waiting", "Waiting.", f"{name} does not exist yet{self._similar()}."
        self.seen = True
        steps, at = run.setting("run.steps"), f"step {run.last_step:,}"
        at += f" of {steps:,}" if isinstance(steps, int) else ""
        alive = written_by(self.path)
        if self._finished(run, steps, alive):
            return "finished", "The run has finished.", at
        if alive is False:
            return "stopped", "The run has stopped: no process writes to it.", f"{at}; run.resume=auto continues it"
        metrics = self.path / "metrics.jsonl"
        silent = time.time() - metrics.stat().st_mtime if metrics.exists() else 0.0
        return "running", "Running.", at + (f"; the last one {duration(silent)} ago" if silent > SILENT_S else "")

    def _read(self) -> RunRecord:
        files = self._files()
        if self._record is None or self._record[0] != files:
            self._record = files, read(self.path)
        return self._record[1]

    def _finished(self, run: RunRecord, steps: object, alive: bool | None) -> bool:
        if run.setting("sft") is not None:
            return alive is not True and (self.path / "model" / "config.json").exists()
        summarised = number(run.summary, "steps")
        if summarised is None:
            return False
        return not isinstance(steps, int) or min(summarised, run.last_step) >= steps

    def _similar(self) -> str:
        folder = self.path.resolve().parent
        names = [p.name for p in folder.iterdir() if p.is_dir()] if folder.is_dir() else []
        near = difflib.get_close_matches(self.path.name, names, 1)
        return f" (there is {visible(str(self.path.parent / near[0]))})" if near else ""

    def _files(self) -> str:
        """Return what changes with the files that the page shows."""
        times = []
        for name in FILES:
            try:
                stat = (self.path / name).stat()
                times.append(f"{stat.st_mtime_ns:x}.{stat.st_size:x}")
            except OSError:
                times.append("")
        return "-".join(times)


class Server(ThreadingHTTPServer):
    """Answers this machine only: the page and its state, to GET, by this machine's names."""

    daemon_threads = True

    def __init__(self, run: LiveRun, port: int) -> None:
        """Listen on `port`, 0: any that is free. Raises ValueError when that is not possible."""
        self.run = run
        try:
            super().__init__((ADDRESS, port), _Handler)
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            why = "is taken" if taken else f"cannot be used ({os.strerror(error.errno or 0)})"
            raise ValueError(f"port {port} {why}: name another with --port N, or --port 0 for any free one") from None
        self.url = f"http://{ADDRESS}:{self.server_address[1]}/"

    def handle_error(self, request, client_address) -> None:
        """Print the traceback of a fault, but nothing of a browser that went away in the middle."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server_version, sys_version = "rlhf-pg", ""
    timeout = 20.0  # seconds for a request to arrive

    def do_GET(self) -> None:
        host = self.headers.get("Host", "").rsplit(":", 1)[0]
        if host not in NAMES:
            self._answer(HTTPStatus.FORBIDDEN, f"open this page as {ADDRESS} or localhost".encode(), "text/plain")
            return
        run = self.server.run  # pyright: ignore[reportAttributeAccessIssue]
        match urlsplit(self.path).path:
            case "/":
                self._answer(HTTPStatus.OK, run.page(), "text/html")
            case "/state":
                self._answer(HTTPStatus.OK, json.dumps(asdict(run.state())).encode(), "application/json")
            case _:
                self._answer(HTTPStatus.NOT_FOUND, b"there is only /", "text/plain")

    def _answer(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in {**HEADERS, "Content-Type": f"{kind}; charset=utf-8"}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing: the terminal tells what becomes of the run."""
