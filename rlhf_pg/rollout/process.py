"""An engine that runs another one in a second process, so that rollouts can be sampled while this one trains.

    start      writes the weights into shared memory and asks for rollouts; returns at once
    generate   of what was started: waits for it. Of anything else: lets what was started finish, keeps it, then samples

The second process has the weights of the moment of `start`, whatever happens to the live ones meanwhile. Only trained
weights are written (of a LoRA policy: the adapter). An answer names the version of the weights it was sampled from;
the shared memory is not written before it has come. Prompts, tokens and log-probs travel as raw bytes; pickled is only
the model's structure, once, from this process to the one it starts. The second process ends when this one does.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_pg.rollout import protocol
from rlhf_pg.rollout.attention import embedding_weight
from rlhf_pg.rollout.engine import Finished, Progress, check_request
from rlhf_pg.rollout.weights import SharedWeights, overwrite, structure_of, tensors_of
from rlhf_pg.types import Completion, Prompt, Sampling

GOODBYE_S = 5.0  # for a process that closed its connection to end
LOOK_S = 0.02  # between two looks for an answer
BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from rlhf_pg.rollout.child import main; main()"


@dataclass
class Started:
    """Rollouts that were asked for ahead of their step."""

    prompts: list[Prompt]
    sampling: Sampling
    version: int  # of the weights they are sampled from
    groups: list[list[Completion]] | None = None  # None: still being sampled
    seconds: float = 0.0  # that the second process took

    def is_for(self, prompts: Sequence[Prompt], sampling: Sampling) -> bool:
        return sampling == self.sampling and [p.id for p in prompts] == [p.id for p in self.prompts]


class ProcessEngine:
    """See `Engine`; `engine` names the one that runs in the second process, built with `options` and `facts`.

    On the CPU the cores are shared out: until `close`, this process computes with half of the threads it had (rounded
    up) and rollouts started ahead with the other half (one at least); those that are waited for from the beginning get
    all. On a machine with several GPUs, the second process takes the one after this process's.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        eos_ids: Sequence[int],
        slots: int = 256,
        version: int = 0,
        engine: str = "native",
        options: Mapping[str, Any] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.eos_ids, self.version = model, tuple(eos_ids), version
        self.started: Started | None = None
        self.seconds = 0.0  # that the rollouts of the last `generate` took to sample
        self._live = tensors_of(model)
        self._changing = {name for name, t in self._live.items() if t.requires_grad}
        self._shared = SharedWeights(self._live)
        self._shared.write(self._live, self._live)
        self._awaited = False  # whether the answer to the last request is still to come
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._threads = torch.get_num_threads()
        settings = {"engine": engine, "eos_ids": self.eos_ids, "slots": slots}
        self._process, self._connection = self._launch(settings | {"options": options or {}, "facts": facts or {}})

    def _launch(self, settings: dict[str, Any]) -> tuple[subprocess.Popen, Connection]:
        device = _other_device(embedding_weight(self.model).device)
        if device.type == "cpu":
            torch.set_num_threads(self._threads - self._threads // 2)
        structure = pickle.dumps(structure_of(self.model))
        mine, theirs = socket.socketpair()
        path = json.dumps([p or os.getcwd() for p in sys.path])
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", BOOT, path, str(theirs.fileno())],
                pass_fds=[theirs.fileno(), self._shared.file],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                start_new_session=True,  # Ctrl-C is for this process to act on
            )
        connection = Connection(mine.detach())
        protocol.send(connection, settings | {"device": str(device), "file": self._shared.file})
        connection.send_bytes(structure)
        return process, connection

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        progress: Progress | None = None,
        finished: Finished | None = None,
    ) -> list[list[Completion]]:
        """See `Engine.generate`. RuntimeError, with its last words, when the second process has ended."""
        check_request(prompts, sampling)
        total = len(prompts) * sampling.samples
        hand_out = None if finished is None else protocol.Once(finished)
        ahead = self.started if self.started and self.started.is_for(prompts, sampling) else None
        if ahead:
            self.settle(progress, hand_out)
            groups, self.seconds = ahead.groups or [], ahead.seconds
        else:
            self.settle(None if progress is None else lambda *_: progress(0, total, 0))
            self._request(prompts, sampling, self.version, self._threads)
        try:
            if not ahead:
                groups, self.seconds = self._answer(total, progress, hand_out)
            if hand_out is not None:
                for prompt, group in enumerate(groups):
                    for place, completion in enumerate(group):
                        hand_out(prompt, place, completion)
            if progress is not None:
                progress(total, total, sum(len(c.tokens) for group in groups for c in group))
        except BaseException:
            if not ahead:
                self._cancel()
            raise
        if ahead:
            self.started = None
        return groups

    def start(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        weights: Mapping[str, Tensor] | None = None,
        version: int | None = None,
    ) -> None:
        """Have rollouts sampled, from the weights as they are now, for a later `generate` of the same.

        `weights`, with their `version`, stand in for the live ones of the same names. RuntimeError if some are started.
        """
        if self.started is not None:
            raise RuntimeError("rollouts are already started: generate them first")
        check_request(prompts, sampling)
        version = self.version if version is None else version
        self._request(prompts, sampling, version, max(1, self._threads // 2), weights or {})
        self.started = Started(list(prompts), sampling, version)

    def settle(self, progress: Progress | None = None, finished: Finished | None = None) -> None:
        """Wait until what was started is sampled, if anything. Both may raise: it then goes on being sampled."""
        started = self.started
        if started and started.groups is None:
            total = len(started.prompts) * started.sampling.samples
            started.groups, started.seconds = self._answer(total, progress, finished)

    def look(self) -> Started | None:
        """What was started, settled if it can be without waiting. It is left unsettled by an engine that failed."""
        if self.started and self.started.groups is None:
            with suppress(RuntimeError, ValueError, FloatingPointError):
                while self._connection.poll(0):
                    answer, tensors = self._receive()
                    if not self._awaited:
                        self.started.groups, self.started.seconds = protocol.completions(answer, tensors)
                        break
        return self.started

    def put_back(self, started: Started | None) -> None:
        """Make this what was started. What is being sampled, if it is something else, is given up."""
        if self.started is not started:
            self._cancel()
            self.started = started

    def sampling_from(self) -> dict[str, Tensor]:
        """The weights, of those that change, that the last request is sampled from: the shared tensors themselves."""
        return {name: self._shared.tensors[name] for name in sorted(self._changing)}

    def load_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Copy tensors over the live weights; the second process has them from the next request on.

        Raises ValueError, before anything is changed, for an unknown name or a wrong shape.
        """
        alive = {id(tensor): name for name, tensor in self._live.items()}
        named = self.model.state_dict(keep_vars=True)
        self._changing |= {alive[id(named[name])] for name in overwrite(self.model, tensors)}
        self.version = version

    def close(self) -> None:
        """End the second process and take its threads back."""
        if self._connection.closed:
            return
        self.started, self._awaited = None, False
        self._connection.close()
        self._process.kill()
        self._process.wait()
        self._log.close()
        os.close(self._shared.file)
        torch.set_num_threads(self._threads)

    def _request(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        version: int,
        threads: int,
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        while self._awaited:  # an answer that nobody wanted any more, at most a decode step away
            self._receive()
        self._shared.write({**self._live, **(weights or {})}, self._changing)
        self._shared.progress.zero_()
        header, tensors = protocol.request(prompts, sampling, self._live[next(iter(self._live))].device.type)
        header |= {"do": "generate", "version": version, "changed": sorted(self._changing), "threads": threads}
        with self._telling_its_end():
            protocol.send(self._connection, header, **tensors)
        self._awaited = True

    def _answer(
        self, total: int, progress: Progress | None, finished: Finished | None
    ) -> tuple[list[list[Completion]], float]:
        """Wait for the completions of the last request, and the seconds that they took."""
        if not self._awaited:
            raise RuntimeError("the rollout process has answered already, with an error")
        if finished is not None:
            self._tell("stream")
        while True:
            while not self._arrived():
                if progress is not None:
                    done, _, tokens = self._shared.progress.tolist()
                    progress(done, total, tokens)
            answer, tensors = self._receive()
            if not self._awaited:
                return protocol.completions(answer, tensors)
            if finished is not None:
                for place, row in protocol.unpack_rows(answer, tensors):
                    finished(*place, row)

    def _arrived(self) -> bool:
        """Whether there is something to receive, if only that the second process has ended."""
        with self._telling_its_end():
            return self._connection.poll(LOOK_S)

    def _receive(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The next message: some finished rows of the last request, or its answer, which is then no longer awaited."""
        with self._telling_its_end():
            message, tensors = protocol.receive(self._connection)
        self._awaited = "finished" in message
        return message, tensors

    def _cancel(self) -> None:
        """Have the second process drop what it is sampling."""
        if self._awaited:
            self._tell("cancel")

    def _tell(self, what: str) -> None:
        with suppress(OSError):  # it has ended: whoever waits for it is told
            protocol.send(self._connection, {"do": what})

    @contextmanager
    def _telling_its_end(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError) as error:
            raise RuntimeError(self._last_words()) from error

    def _last_words(self) -> str:
        if self._connection.closed:
            return "the rollout process was closed: build another engine"
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(GOODBYE_S)
        self._process.kill()  # nobody could talk to it any more
        code = self._process.wait()
        end = f"exit status {code}" if code >= 0 else signal.Signals(-code).name
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - 4000))
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return f"the rollout process ended with {end}{': ' + lines[-1][:500] if lines else ''}"


def _other_device(device: torch.device) -> torch.device:
    """Where the second process computes: on the next GPU, which may be the same one, or on the CPU."""
    if device.type == "cpu":
        return device
    return torch.device(device.type, ((device.index or 0) + 1) % torch.get_device_module(device).device_count())
