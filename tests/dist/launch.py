"""Start several processes as a user would, by `accelerate launch` and the configurations in recipes/accelerate."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LIMIT_S = 300.0  # of one launch: a hang is a failure


def command(configuration: str, *module: str) -> list[str]:
    """`accelerate launch` of a module and its arguments with recipes/accelerate/<configuration>.yaml."""
    file = ROOT / "recipes" / "accelerate" / f"{configuration}.yaml"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file)]
    return [*launch, "--main_process_port", str(_free_port()), "-m", *module]


def start(configuration: str, *module: str, **environment: str) -> subprocess.Popen[str]:
    """Start it; output and errors in one pipe."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    return subprocess.Popen(command(configuration, *module), cwd=ROOT, env=env, **pipe)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """(exit status, output). A launch that does not end is killed, and an AssertionError shows its output."""
    try:
        output, _ = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        raise AssertionError(f"the launch did not end within {LIMIT_S:g} s:\n{output[-4000:]}") from None
    return process.returncode, output


def run_all(configuration: str, plays: list[dict[str, Any]], folder: Path) -> list[int]:
    """Run recipes one after the other in one launch; returns their exit statuses."""
    file = folder / "plays.json"
    file.write_text(json.dumps(plays))
    status, output = finish(start(configuration, "tests.dist.play", str(file)))
    file.with_suffix(".output.txt").write_text(output)
    assert status == 0, output[-6000:]
    return json.loads(file.with_suffix(".status.json").read_text())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
