"""A run that goes on: what its page says of it, and whom the server answers."""

import http.client
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from rlhf_pg.report import live_page, write_report
from rlhf_pg.report.live_page import LiveRun, Server
from rlhf_pg.storage.run_dir import RunDir, written_by
from tests.report.browser import needs_chromium, opened
from tests.report.report_pages import Page, make, row

CONFIG = "run: {steps: 3}\nalgorithm: {name: grpo}\n"


@contextmanager
def served(path):
    with Server(LiveRun(path), 0) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


def ask(server, path="/", method="GET", **headers):
    """(status, headers, body) of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=20)
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    return response.status, response.headers, response.read().decode()


def ended_process():
    """The id of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def lock(path, pid, host=None):
    (path / ".lock").write_text(json.dumps({"pid": pid, "host": host or socket.gethostname()}))


def add(path, line):
    with (path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def test_a_run_waits_runs_finishes_and_vanishes(tmp_path):
    live = LiveRun(tmp_path / "toy_grop")
    (tmp_path / "toy_grpo").mkdir()
    state = live.state()
    assert state.status == "waiting" and "does not exist yet" in state.detail and "toy_grpo)" in state.detail
    assert b"has no step yet" in live.page()
    make(tmp_path / "toy_grop", [row(1)], config=CONFIG)
    lock(live.path, os.getpid())
    assert (live.state().status, live.state().detail) == ("running", "step 1 of 3")
    for step in (2, 3):
        add(live.path, row(step))
    (live.path / "summary.json").write_text(json.dumps({"steps": 3}))
    assert (live.state().status, live.state().detail) == ("finished", "step 3 of 3")
    page = live.page()
    shutil.rmtree(live.path)
    assert live.state().status == "missing" and live.page() == page and live.state().version == version_of(page)


def version_of(page):
    return page.decode().split('data-version="')[1].split('"')[0]


def test_a_killed_run_is_not_said_to_run(tmp_path):
    live = LiveRun(make(tmp_path / "run", [row(2)], config=CONFIG))
    lock(live.path, ended_process())
    assert live.state().status == "stopped" and "run.resume=auto continues it" in live.state().detail
    lock(live.path, ended_process(), host="elsewhere")  # whose processes cannot be seen from here
    assert live.state().status == "running"


def test_a_run_made_longer_after_its_end_runs_again(tmp_path):
    live = LiveRun(make(tmp_path / "run", [row(3)], config=CONFIG, summary={"steps": 3}))
    assert live.state().status == "finished"
    (live.path / "config.yaml").write_text(CONFIG.replace("3", "9"))
    lock(live.path, os.getpid())
    assert live.state().status == "running"


def test_a_cold_start_has_finished_once_its_model_is_there(tmp_path):
    live = LiveRun(make(tmp_path / "run", [{"step": 1, "loss": 1.0}], config="sft: {epochs: 1}\n"))
    lock(live.path, ended_process())
    assert live.state().status == "stopped"
    (live.path / "model").mkdir()
    (live.path / "model/config.json").write_text("{}")
    assert live.state().status == "finished"


def test_the_writer_of_a_folder_is_known_without_locking_it(tmp_path):
    assert written_by(tmp_path) is None
    with RunDir.open(tmp_path, "never"):
        assert written_by(tmp_path) is True
    for text in ("", "{", "[]", '{"pid": "x", "host": 1}', json.dumps({"pid": "x", "host": socket.gethostname()})):
        (tmp_path / ".lock").write_text(text)
        assert written_by(tmp_path) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda path: add(path, row(2)),
        lambda path: (path / "eval.jsonl").write_text("{}\n"),
        lambda path: RunDir(path, 0).write_rollouts(1, [{"completion": "new"}]),  # in place of the old file
        lambda path: (path / "summary.json").write_text("{}"),
    ],
)
def test_whatever_the_page_shows_makes_a_new_version(tmp_path, change):
    live = LiveRun(make(tmp_path / "run", [row(1)], samples={1: [{"completion": "old"}]}))
    before = live.page()
    assert live.page() is before and live.state().version == version_of(before)
    change(live.path)
    assert live.state().version != version_of(before)
    assert version_of(live.page()) == live.state().version


def test_a_page_that_takes_long_to_write_is_asked_for_less_often(tmp_path):
    live = LiveRun(make(tmp_path / "run", [row(1)]))
    live._render_s = 0.1
    assert live.state().wait_s == 2.0
    live._render_s = 3.0
    assert live.state().wait_s == 30.0  # a tenth of the time


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no run"):
        LiveRun(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="no run directory"):
        LiveRun(tmp_path / "file")


def test_only_the_page_and_its_state_are_served(tmp_path):
    run = make(tmp_path / "run", [row(1)], samples={1: [{"completion": "a"}]})
    with served(run) as server:
        status, headers, body = ask(server)
        assert status == 200 and headers["Content-Type"] == "text/html; charset=utf-8" and "<h1>run</h1>" in body
        assert headers["Cache-Control"] == "no-store" and headers["X-Content-Type-Options"] == "nosniff"
        status, _, body = ask(server, "/state?x=1")
        assert status == 200 and json.loads(body)["status"] == "running"
        for path in ("/metrics.jsonl", "/rollouts/", "/..", "//etc/passwd", "/state/", "/%2e%2e/run", "/report.html"):
            assert ask(server, path)[0] == 404, path
        for method in ("POST", "PUT", "DELETE", "HEAD", "OPTIONS"):
            assert ask(server, method=method)[0] == 501, method


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:80", "localhost.evil.example", "", "0.0.0.0"])
def test_a_name_that_another_site_pointed_here_is_refused(tmp_path, host):
    with served(make(tmp_path / "run", [row(1)])) as server:
        assert ask(server, Host=host)[0] == 403 and ask(server, "/state", Host=host)[0] == 403
        for own in ("localhost", "localhost:9", f"127.0.0.1:{server.server_address[1]}"):  # 9: of a tunnel
            assert ask(server, "/state", Host=own)[0] == 200


def test_the_server_listens_on_this_machine_only_and_says_so_of_a_taken_port(tmp_path):
    run = make(tmp_path / "run", [row(1)])
    with served(run) as server:
        assert server.server_address[0] == "127.0.0.1"
        port = server.server_address[1]
        with pytest.raises(ValueError, match=f"port {port} is taken: name another with --port N"):
            Server(LiveRun(run), port)


def test_a_browser_that_goes_away_in_the_middle_leaves_no_traceback(tmp_path, capfd):
    run = make(tmp_path / "run", [row(1)], samples={1: [{"completion": "x" * 1000}] * 5000})  # more than a buffer
    with served(run) as server:
        gone = socket.create_connection(("127.0.0.1", server.server_address[1]))
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
        gone.sendall(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")
        gone.recv(10)
        gone.close()
        assert ask(server, "/state")[0] == 200
        time.sleep(0.3)
    assert capfd.readouterr().err == ""


def test_only_a_live_page_may_ask_its_server(tmp_path):
    run = make(tmp_path / "run", [row(1)])
    assert "connect-src" not in Page(write_report.write([run])).html
    assert "connect-src &#39;self&#39;" in LiveRun(run).page().decode()


@needs_chromium
def test_a_page_follows_its_run(tmp_path, monkeypatch):
    monkeypatch.setattr(live_page, "BUSY", 1e9)  # else a slow machine makes the page ask after the test's end
    path = make(tmp_path / "run", [row(1)], config=CONFIG, samples={1: [{"completion": "one"}]})
    lock(path, os.getpid())

    class Growing(LiveRun):
        asked = 0

        def state(self):
            self.asked += 1
            if self.asked == 4:  # once the page is there
                add(path, row(2))
                (path / "rollouts/step_00000002.jsonl").write_text(json.dumps({"completion": "two"}) + "\n")
            return super().state()

    with Server(Growing(path), 0) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        document = opened(server.url, milliseconds=15_000)
        server.shutdown()
    assert "step 2 of 3" in document and "2 samples" in document and 'class="running"' in document
