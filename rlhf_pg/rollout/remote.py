"""The training side of `rollout.server`: an engine that runs in `rlhf-pg serve`, here or on another machine.

A push sends what training changes (of a LoRA policy: the adapter), is acknowledged with its version, and proved: the
server samples a few tokens, and this side scores them. An answer counts only if it is to the request that was made, of
the weights that were asked for, whole, and possible. Any other, a silence longer than `timeout_s`, and a connection
that ends lead to another attempt on a new connection, with the weights pushed again where the server is not known to
have them. After ATTEMPTS, RunError: the run is saved and stops.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from rlhf_pg.errors import RunError
from rlhf_pg.rollout import link, protocol, weight_check
from rlhf_pg.rollout.answer import Answer, Fault, Left
from rlhf_pg.rollout.attention import context_of
from rlhf_pg.rollout.engine import Finished, Progress, check_request
from rlhf_pg.rollout.weights import overwrite
from rlhf_pg.types import Completion, Prompt, Sampling

ATTEMPTS = 3
LOOK_S = 0.05  # between two looks for an answer
PAUSE_S = 0.5  # between two looks for a server
WIRED = set(protocol.DTYPES.values())  # what the wire takes as it is


class RemoteEngine:
    """See `Engine`. `server`: the file that `rlhf-pg serve` writes. dtype: of the trainer's arithmetic; context: of the
    longest request. timeout_s: without any sign of the server, of which it gives one a second while it samples."""

    samples_live_weights = False

    def __init__(
        self,
        model: PreTrainedModel,
        eos_ids: Sequence[int],
        server: Path,
        version: int = 0,
        *,
        dtype: str = "float32",
        context: int | None = None,
        timeout_s: float = 300.0,
    ) -> None:
        self.model, self.eos_ids, self.server, self.version = model, frozenset(eos_ids), server, version
        self.dtype, self.timeout_s = dtype, timeout_s
        self.context = min(context_of(model.config) or 2**31, context or 2**31)
        self.vocabulary = model.config.get_text_config().vocab_size
        self.seconds = 0.0  # that the last rollouts took to sample
        self._changing = {name for name, p in model.named_parameters() if p.requires_grad}
        self._connection: Connection | None = None
        self._known: tuple[str, int] | None = None  # which server has which version of the weights
        self._number = 0  # of the last request

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        progress: Progress | None = None,
        finished: Finished | None = None,
    ) -> list[list[Completion]]:
        """See `Engine.generate`. RunError when the server cannot be had or does not do it."""
        check_request(prompts, sampling, self.context, self.vocabulary)
        answer = Answer(self, prompts, sampling, progress, finished)
        try:
            self._attempt(lambda: self._sample(answer))
        except Left as left:
            raise left.error from None
        return answer.groups()

    def load_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Copy tensors over the live weights and push what training changes. Returns when the server has them, proved.

        Raises ValueError, before anything is changed, for an unknown name or a wrong shape.
        """
        self._changing |= set(overwrite(self.model, tensors))
        self.version, self._known = version, None
        self._attempt(lambda: None)

    def close(self) -> None:
        """Leave the server, which goes on."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _attempt(self, act: Callable[[], None]) -> None:
        """Do something at a server that has this version of the weights, some times if need be."""
        faults: list[str] = []
        for _ in range(ATTEMPTS):
            try:
                self._ready()
                return act()
            except (Fault, OSError, EOFError) as error:
                self.close()
                text = str(error) or type(error).__name__
                late = isinstance(error, BlockingIOError)
                faults.append(f"nothing came for {self.timeout_s:g} s" if late else text)
            except BaseException:
                self.close()  # what was asked for may still be on its way
                raise
        raise RunError(f"the rollout server of {self.server} failed {ATTEMPTS} times: {'; then '.join(faults)}")

    def _ready(self) -> None:
        """A connection to a server with this version of the weights."""
        if self._connection is None:
            self._connection = self._connect()
            protocol.send(self._connection, {"do": "hello"})
            state = protocol.receive(self._connection)[0]["hello"]
            if state["vocabulary"] != self.vocabulary:
                raise RunError(f"the rollout server has a model of {state['vocabulary']} tokens, not {self.vocabulary}")
            if self._known != (state["id"], state["version"]):
                self._known = None
            self._id = state["id"]
        if self._known is None:
            self._push(self._connection)
            self._known = self._id, self.version
            self._prove()

    def _connect(self) -> Connection:
        """The server of the file, waited for: one that was started again has written another address there."""
        deadline = time.monotonic() + self.timeout_s
        while True:
            try:
                return link.Address.read(self.server).connect(self.timeout_s)
            except (OSError, EOFError) as error:
                if time.monotonic() > deadline:
                    raise Fault(f"no server there after {self.timeout_s:g} s ({error})") from error
                time.sleep(PAUSE_S)

    def _push(self, connection: Connection) -> None:
        number = self._next()
        protocol.send(connection, {"do": "push", "id": number, "version": self.version})
        named = self.model.state_dict(keep_vars=True)
        for name in sorted(self._changing):
            tensor = named[name].detach().cpu()
            values = (tensor if tensor.dtype in WIRED else tensor.float()).reshape(-1)
            header = {"do": "tensor", "id": number, "name": name, "shape": list(tensor.shape)}
            protocol.send(connection, header, values=values)
        protocol.send(connection, {"do": "end", "id": number})
        answer, _ = protocol.receive(connection)
        protocol.raise_failure(answer, "the rollout server", Fault)
        if (answer["id"], answer["version"]) != (number, self.version):
            raise Fault(f"the push of version {self.version} was acknowledged as version {answer['version']}")

    def _prove(self) -> None:
        """Have a few tokens sampled and score them here."""
        asked = weight_check.prompts(self.vocabulary, self.context)
        answer = Answer(self, asked, weight_check.sampling(self.context))
        self._sample(answer)
        weight_check.check(weight_check.gap(self.model, asked, answer.groups(), self.dtype), self.dtype, self.version)

    def _sample(self, answer: Answer) -> None:
        """Ask for what an answer lacks, and fill it."""
        connection, number = self._connection, self._next()
        assert connection is not None
        device = next(self.model.parameters()).device.type
        header, tensors = protocol.request(answer.prompts, answer.sampling, device)
        protocol.send(connection, header | {"do": "generate", "id": number, "version": self.version}, **tensors)
        try:
            while not self._take(connection, number, answer):
                pass
        except (Fault, OSError, EOFError):
            raise
        except BaseException:
            with suppress(OSError):
                protocol.send(connection, {"do": "cancel", "id": number})
            raise

    def _take(self, connection: Connection, number: int, answer: Answer) -> bool:
        """Wait for the next message and add what it brings; whether it was the last."""
        waited = time.monotonic()
        while not connection.poll(LOOK_S):
            answer.look()
            if time.monotonic() - waited > self.timeout_s:
                raise Fault(f"nothing came for {self.timeout_s:g} s")
        message, tensors = protocol.receive(connection)
        if message.get("id") != number:
            raise Fault(f"an answer to request {message.get('id')} came for request {number}")
        protocol.raise_failure(message, "the rollout server", Fault)
        if message.get("stale") or message["version"] != self.version:
            self._known = None
            raise Fault(f"the server has weights of version {message['version']}, not {self.version}")
        if message.get("progress"):
            answer.seen = max(answer.seen, message["progress"][2])
        if "finished" in message:
            for place, row in protocol.unpack_rows(message, tensors):
                answer.add(*place, row)
        answer.look()
        if message.get("done"):
            self.seconds = message["seconds"]
            answer.whole()
        return bool(message.get("done"))

    def _next(self) -> int:
        self._number += 1
        return self._number
