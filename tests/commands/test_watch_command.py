"""`rlhf-pg watch` as a person runs it: a process, a folder that grows, Ctrl-C."""

import json
import re
import shutil
import signal
import subprocess
import sys
import urllib.request

import pytest

from rlhf_pg import cli
from tests.report.report_pages import make, row


@pytest.fixture
def watching(tmp_path):
    """The process on a folder that does not exist yet, and its lines."""
    command = [sys.executable, "-m", "rlhf_pg", "watch", str(tmp_path / "run"), "--port", "0"]
    # A background job of a script ignores Ctrl-C, and so would its children.
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, preexec_fn=heed, **pipes)
    yield process
    process.kill()
    process.wait()


def test_watch_follows_a_folder_and_ends_by_ctrl_c(watching, tmp_path):
    url = re.findall(r"http://127\.0\.0\.1:\d+/", watching.stdout.readline())[0]
    assert "does not exist yet" in watching.stdout.readline()

    def state():
        with urllib.request.urlopen(url + "state") as answer:
            return json.load(answer)

    run = make(tmp_path / "run", [row(1)], config="run: {steps: 2}\n")
    assert watching.stdout.readline() == "Running. step 1 of 2\n" and state()["detail"] == "step 1 of 2"
    first = state()["version"]
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row(2, reward=0.75)) + "\n")
    assert state()["version"] != first
    with urllib.request.urlopen(url) as page:
        assert "2 of 2 steps" in page.read().decode()
    (run / "summary.json").write_text('{"steps": 2}')
    assert watching.stdout.readline() == "The run has finished. step 2 of 2\n"
    shutil.rmtree(run)
    assert watching.stdout.readline().startswith("The folder has vanished.")
    watching.send_signal(signal.SIGINT)
    assert watching.communicate(timeout=20)[0] == "watch ended\n" and watching.returncode == 0


def test_a_taken_port_is_named_with_the_option_that_helps(watching, tmp_path, capsys):
    port = re.findall(r":(\d+)/", watching.stdout.readline())[0]
    assert cli.main(["watch", str(tmp_path / "other"), "--port", port]) == 2
    assert f"port {port} is taken: name another with --port N" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["-1", "65536", "x", "1.5"])
def test_what_is_no_port_is_refused(port, capsys):
    with pytest.raises(SystemExit):
        cli.main(["watch", "runs/x", "--port", port])
    assert "is no port: a whole number up to 65535" in capsys.readouterr().err


def test_a_folder_that_holds_no_run_is_refused(tmp_path, capsys):
    assert cli.main(["watch", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err
