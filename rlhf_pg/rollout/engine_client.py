"""An engine that runs elsewhere: in a second process (launch_local.py) or behind `rlhf-pg serve` (launch_server.py).

Only what training changes travels, of a LoRA policy the adapter: through shared memory with every request, or over the
connection after every `load_weights`. Weights that were sent are checked: the worker samples a few tokens, and this
side scores them. A message counts only if it is about the request under way, of the weights that were wanted, and
possible. Any other, a silence longer than the worker's `timeout_s`, and a connection that ends lead to another attempt,
as often as the worker allows: on a new connection, with the weights sent again. Completions that came are kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from multiprocessing.connection import Connection
from typing import Protocol

from torch import Tensor
from transformers import PreTrainedModel

from rlhf_pg.models.context import context_length
from rlhf_pg.rollout import protocol, weight_check
from rlhf_pg.rollout.arrived import Arrived, Fault
from rlhf_pg.rollout.engine import Engine, Finished, Progress, RolloutRequest, check_request
from rlhf_pg.rollout.weights import SharedWeights, overwrite, tensors_of
from rlhf_pg.types import Completion, Prompt, Sampling

LOOK_S = 0.02  # between two looks for a message


class Worker(Protocol):
    """How a client reaches its worker, and what it may expect of it."""

    name: str  # in messages: "the rollout server"
    attempts: int  # at a request, each on a new connection
    timeout_s: float | None  # without a sign of a worker that was asked for something; None: it is waited for
    engine_error: type[Exception]  # what an error that breaks the engine is raised as: `Fault` if another may mend it
    shared: SharedWeights | None  # through which weights travel; None: they are sent over the connection

    def connect(self) -> Connection:
        """Connect. Raises OSError or EOFError if there is no worker."""
        ...

    def failure(self, faults: Sequence[str]) -> Exception:
        """Return what to raise when all attempts have failed, each by one of the faults."""
        ...

    def threads(self, *, waited: bool) -> int | None:
        """Return with how many threads to sample while this process waits, or computes; None: that is not shared."""
        ...

    def close(self) -> None:
        """Give back what the worker costs here."""
        ...


class EngineClient(Engine):
    """See `Engine`. `dtype`: of the trainer's arithmetic; `context`: of the longest request, at most the model's."""

    def __init__(
        self,
        model: PreTrainedModel,
        eos_ids: Sequence[int],
        worker: Worker,
        version: int = 0,
        *,
        dtype: str = "float32",
        context: int | None = None,
    ) -> None:
        self.model, self.eos_ids, self.worker, self.version = model, tuple(eos_ids), worker, version
        self.dtype, self.context = dtype, min(context_length(model.config), context or 2**31)
        self.vocabulary = model.config.get_text_config().vocab_size
        self._live = tensors_of(model)
        self._changing = {name for name, tensor in self._live.items() if tensor.requires_grad}
        self._connection: Connection | None = None
        self._weights_sent = False  # whether those of `version` were sent on this connection, and checked
        self._number = 0  # of the last request
        self._arriving: Arrived | None = None  # what the worker is sampling; None: nothing that is still wanted
        self._awaited = False  # whether the end of the worker's answer to the last request is still to come
        self._heard = 0.0  # when something was last sent or received

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        progress: Progress | None = None,
        finished: Finished | None = None,
    ) -> list[list[Completion]]:
        """See `Engine.generate`. Also raises what `Worker.failure` returns when the worker does not do it.

        What was started and is something else is waited for first, and kept.
        """
        check_request(prompts, sampling)
        if self.started and self.started.is_for(prompts, sampling):
            request = self.started
            groups = self._complete(request, progress, finished)
            self.started = None
        else:
            request = RolloutRequest(list(prompts), sampling, self.version)
            self.collect(None if progress is None else lambda *_: progress(0, request.rows, 0))
            try:
                groups = self._complete(request, progress, finished)
            except BaseException:
                self._cancel()
                raise
        self.seconds = request.seconds
        return groups

    def start(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        weights: Mapping[str, Tensor] | None = None,
        version: int | None = None,
    ) -> None:
        """See `Engine.start`."""
        if self.started is not None:
            raise RuntimeError("rollouts are already started: generate them first")
        check_request(prompts, sampling)
        request = RolloutRequest(list(prompts), sampling, self.version if version is None else version)
        self._attempt(lambda: self._send(self._nothing_of(request), weights or {}, waited=False), [], 1)
        self.started = request

    def collect(self, progress: Progress | None = None, finished: Finished | None = None) -> RolloutRequest | None:
        """See `Engine.collect`."""
        if self.started and self.started.groups is None:
            self._complete(self.started, progress, finished)
        return self.started

    def look(self) -> RolloutRequest | None:
        """See `Engine.look`."""
        if self._under_way(self.started) and self._connection is not None:
            with suppress(Fault, OSError, EOFError, RuntimeError, ValueError, FloatingPointError):
                while self._awaited and self._connection.poll(0):
                    self._receive()
        return self.started

    def put_back(self, started: RolloutRequest | None) -> None:
        """See `Engine.put_back`."""
        if self.started is not started:
            self._cancel()
            self.started = started

    def load_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Copy tensors over the live weights; the worker has them from the next request on.

        Where they are sent they are sent and checked now, unless something that was started is still being sampled.
        Raises ValueError, before anything is changed, for an unknown name or a wrong shape; RuntimeError when what the
        worker then samples is not what these weights make likely.
        """
        names = {id(tensor): name for name, tensor in self._live.items()}
        named = self.model.state_dict(keep_vars=True)
        self._changing |= {names[id(named[name])] for name in overwrite(self.model, tensors)}
        self.version, self._weights_sent = version, False
        faults: list[str] = []
        while self.worker.shared is None and not self._weights_sent and not self._under_way(self.started):
            self._attempt(self._send_weights, faults, self.worker.attempts)

    def close(self) -> None:
        """See `Engine.close`. A server goes on."""
        self.started = None
        self._disconnect()
        self.worker.close()

    def _complete(
        self, request: RolloutRequest, progress: Progress | None, finished: Finished | None
    ) -> list[list[Completion]]:
        """Wait for all completions of a request, handing out each as it comes."""
        arrived = self._under_way(request) or self._nothing_of(request)
        attempts, faults, handed = self.worker.attempts, list[str](), 0
        if request is self.started and request.groups is None:
            if arrived is not self._arriving:
                raise RuntimeError(f"{self.worker.name} has answered already, with an error")
            attempts = 1  # the weights that it is sampled from may be gone
            self._tell("stream")
        while True:
            for (prompt, sample), row in islice(arrived.rows.items(), handed, None):
                if finished is not None:
                    finished(prompt, sample, row)
            handed = len(arrived.rows)
            if progress is not None:
                progress(handed, request.rows, arrived.tokens)
            if request.groups is not None:
                return request.groups
            self._attempt(lambda: self._advance(arrived), faults, attempts)

    def _attempt(self, act: Callable[[], None], faults: list[str], attempts: int) -> None:
        """Do something with the worker. A fault is noted and the connection given up; too many of them are raised."""
        try:
            act()
        except (Fault, OSError, EOFError) as error:
            self._disconnect()
            late = isinstance(error, BlockingIOError)
            faults.append(_silence(self.worker) if late else str(error) or type(error).__name__)
            if len(faults) >= attempts:
                raise self.worker.failure(faults) from error

    def _advance(self, arrived: Arrived) -> None:
        """Ask for what a request lacks, if that is not done yet, else wait a moment for the next message."""
        if self._arriving is not arrived or self._connection is None:
            self._send(arrived)
        elif self._connection.poll(LOOK_S):
            self._receive()
        elif self.worker.timeout_s is not None and time.monotonic() - self._heard > self.worker.timeout_s:
            raise Fault(_silence(self.worker))

    def _send(self, arrived: Arrived, weights: Mapping[str, Tensor] | None = None, *, waited: bool = True) -> None:
        """Have a request sampled, from the weights as they are now, or of other values where `weights` says so."""
        connection = self._ready_connection()
        names, shared, request = sorted(self._changing), self.worker.shared, arrived.request
        if shared is not None:
            shared.write({**self._live, **(weights or {})}, names)
            request.weights = {name: shared.tensors[name] for name in names}
        elif not self._weights_sent:
            self._send_weights()
        self._post(connection, arrived, waited=waited, shared=names, new_weights=shared is not None)

    def _send_weights(self) -> None:
        """Send what training changes, and check what the worker samples from it."""
        connection = self._ready_connection()
        for name in sorted(self._changing):
            protocol.send(connection, {"do": "weights"}, {name: self._live[name].detach().cpu().contiguous()})
        prompts, sampling = weight_check.prompts(self.vocabulary, self.context), weight_check.sampling(self.context)
        probe = self._nothing_of(RolloutRequest(prompts, sampling, self.version))
        self._post(connection, probe, waited=True, shared=[], new_weights=True)
        while probe.request.groups is None:
            self._advance(probe)
        weight_check.check(self.model, prompts, probe.request.groups, self.dtype, self.version)
        self._weights_sent = True

    def _post(
        self, connection: Connection, arrived: Arrived, *, waited: bool, shared: list[str], new_weights: bool
    ) -> None:
        self._number += 1
        device = next(self.model.parameters()).device.type
        header, tensors = protocol.pack_request(arrived.request.prompts, arrived.request.sampling, device)
        header |= {"do": "generate", "id": self._number, "version": arrived.request.version, "stream": waited}
        header |= {"shared": shared, "new_weights": new_weights, "vocabulary": self.vocabulary}
        protocol.send(connection, header | {"threads": self.worker.threads(waited=waited)}, tensors)
        self._arriving, self._awaited, self._heard = arrived, True, time.monotonic()

    def _ready_connection(self) -> Connection:
        """Return a connection on which the worker waits for a request."""
        if self._connection is None:
            self._connection = self.worker.connect()
        while self._awaited:  # the end of what was cancelled, at most a decode step away
            self._receive()
        return self._connection

    def _receive(self) -> None:
        """Receive a message, and add what it brings to the request under way, if that is still wanted."""
        assert self._connection is not None
        header, tensors = protocol.receive(self._connection)
        arrived, self._heard = self._arriving, time.monotonic()
        if header["id"] != self._number:
            raise Fault(f"an answer to request {header['id']} came for request {self._number}")
        if header.get("last"):
            self._arriving, self._awaited = None, False
        if arrived is None:
            return
        protocol.raise_error(header, self.worker.name, self.worker.engine_error)
        arrived.add(header, tensors)

    def _nothing_of(self, request: RolloutRequest) -> Arrived:
        return Arrived(request, self.worker.name, self.eos_ids, self.vocabulary)

    def _under_way(self, request: RolloutRequest | None) -> Arrived | None:
        """Return what has come of a request that the worker is sampling; None if it samples something else."""
        return self._arriving if self._arriving and self._arriving.request is request else None

    def _cancel(self) -> None:
        """Have the worker drop what it is sampling."""
        if self._awaited:
            self._tell("cancel")
        self._arriving = None

    def _tell(self, what: str) -> None:
        if self._connection is not None:
            with suppress(OSError):  # the worker has ended: whoever waits for it is told
                protocol.send(self._connection, {"do": what})

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = self._arriving = None
        self._weights_sent = self._awaited = False


def _silence(worker: Worker) -> str:
    return f"nothing came for {worker.timeout_s:g} s"
