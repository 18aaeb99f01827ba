"""Runs contenders side by side: one process each, round by round in turn, the first round only to warm up."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LOG_LINES = 15  # of a contender that failed, to show


@dataclass(frozen=True)
class Contender:
    """One process: what it runs (`benchmarks.file:function`), and its specification."""

    name: str
    runs: str
    specification: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    cases: Sequence[str] = ("",)  # one round of a contender with several cases is one command each
    root: Path = ROOT  # the checkout of this project that it runs


@dataclass
class Measured:
    """What one contender answered. `rounds` by case, the warm-up left out."""

    ready: dict[str, Any]
    rounds: dict[str, list[dict[str, Any]]]
    peak_mb: float = 0.0


@dataclass
class Places:
    """Where the processes of contenders run, and what they may use."""

    out: Path
    threads: int
    rounds: int
    failed: dict[str, str] = field(default_factory=dict)  # what ran, and the contender: the end of its log

    def start(self, stack: ExitStack, title: str, contenders: Sequence[Contender]) -> dict[str, Process]:
        """Start all contenders; return those that are ready, by name. One that fails is noted and left out."""
        processes = {c.name: stack.enter_context(started(c, self.threads, self._log(title, c))) for c in contenders}
        for name, process in list(processes.items()):
            try:
                process.ready = process.read()
            except ContenderFailed as error:
                self.failed[f"{title}, {name}"] = str(error)
                del processes[name]
        return processes

    def _log(self, title: str, contender: Contender) -> Path:
        log = self.out / "logs" / (re.sub(r"[^\w.]+", "_", f"{title} {contender.name}") + ".log")
        log.parent.mkdir(parents=True, exist_ok=True)
        return log

    def race(self, title: str, contenders: Sequence[Contender], rounds: int | None = None) -> dict[str, Measured]:
        """Return every contender's answers, by its name. One that fails in any round is noted and left out."""
        with ExitStack() as stack:
            alive = self.start(stack, title, contenders)
            cases = {c.name: c.cases for c in contenders}
            measured = {name: Measured(p.ready, {case: [] for case in cases[name]}) for name, p in alive.items()}
            for number in range(1 + (rounds or self.rounds)):
                for name, process in list(alive.items()):
                    try:
                        _round(process, number, measured[name])
                    except ContenderFailed as error:
                        self.failed[f"{title}, {name}"] = str(error)
                        del alive[name], measured[name]
        return measured


def _round(process: Process, number: int, measured: Measured) -> None:
    for case, answers in measured.rounds.items():
        answer = process.ask({"round": number, "case": case})
        measured.peak_mb = answer["peak_mb"]
        if number:
            answers.append(answer)


class ContenderFailed(Exception):
    """A contender's process ended without an answer; the message is the end of its log."""


@dataclass
class Process:
    """A running contender."""

    inner: subprocess.Popen[str]
    log: Path
    ready: dict[str, Any] = field(default_factory=dict)

    def ask(self, command: dict[str, Any]) -> dict[str, Any]:
        """Send a command and wait for its answer. Raises ContenderFailed."""
        assert self.inner.stdin is not None
        try:
            self.inner.stdin.write(json.dumps(command) + "\n")
            self.inner.stdin.flush()
        except OSError:
            raise ContenderFailed(self._end_of_log()) from None
        return self.read()

    def read(self) -> dict[str, Any]:
        """Wait for the next answer. Raises ContenderFailed."""
        assert self.inner.stdout is not None
        line = self.inner.stdout.readline()
        if not line:
            raise ContenderFailed(self._end_of_log())
        return json.loads(line)

    def _end_of_log(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()
        try:
            status = f"exit status {self.inner.wait(timeout=10)}"  # -9: killed, often for want of memory
        except subprocess.TimeoutExpired:
            status = "closed its output"
        return "\n".join([f"{status}, {self.log}:", *lines[-LOG_LINES:]])


@contextmanager
def started(contender: Contender, threads: int, log: Path) -> Iterator[Process]:
    """Start the process of a contender and end it with the block."""
    specification = contender.specification | {"contender": contender.runs}
    paths = [str(contender.root / "scripts"), str(contender.root), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    environment |= contender.environment
    with log.open("w") as errors:
        inner = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", json.dumps(specification)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=contender.root,  # which Python looks in first
            env=environment | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        )
        try:
            yield Process(inner, log)
        finally:
            assert inner.stdin is not None
            try:
                inner.stdin.close()
                inner.wait(timeout=30)
            except (OSError, subprocess.TimeoutExpired):
                inner.kill()
                inner.wait()


def installed(module: str) -> bool:
    """Return whether a package is installed, without importing it."""
    return importlib.util.find_spec(module) is not None
