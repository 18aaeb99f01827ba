"""The processes of a run, and everything they tell each other. Every wait has a name and a timeout.

Rank r of R. With one process each call returns at once. Work is either collective (every rank must reach it in the same
order) or independent: `independently` ends with an agreement, so that an error or a request to stop on one rank ends
the work of all, in one place, where they can still save. A rank that fails elsewhere writes its cause into the process
group's store and ends; the others read it there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rlhf_pg.distributed.interrupt import Stopped
from rlhf_pg.distributed.watchdog import Watchdog
from rlhf_pg.errors import RunError

BUCKET = 2**25  # elements of one all-reduce: 128 MiB of float32
GRACE_S = 5.0  # how long a rank that failed waits for the others to end too
T = TypeVar("T")


class Ranks:
    """This process among all. `timeout_s`: the longest it waits for the others before the run is ended."""

    def __init__(self, rank: int = 0, size: int = 1, device: torch.device | str = "cpu", timeout_s: float = 1800.0):
        self.rank, self.size, self.device = rank, size, torch.device(device)
        self.place = "the start"  # of the run, for messages: "step 2"
        self.watchdog = Watchdog(rank, timeout_s, _store()) if size > 1 else None
        self.independent = size == 1  # no other rank needs this one now, so that it may stop at once

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    # ---- collectives

    def sum(self, values: Tensor, what: str) -> Tensor:
        """Return the sum of a tensor over all ranks, on the ranks' device; the same bits on all."""
        total = values.to(self.device)
        if self.size == 1:
            return total
        total = total.clone()
        with self.waiting(what):
            dist.all_reduce(total)
        return total

    def gather(self, value: Any, what: str) -> list[Any]:
        """Return each rank's JSON value, in the order of ranks (floats keep their bits, NaN and infinity included).

        Raises RunError when another rank is not here but has failed in independent work.
        """
        if self.size == 1:
            return [value]
        messages = self._exchange({"at": what, "value": value}, what)
        self._check_messages(messages, what)
        return [message["value"] for message in messages]

    def _exchange(self, message: dict[str, Any], what: str) -> list[dict[str, Any]]:
        """Return each rank's message. As JSON, not by torch's all_gather_object: that unpickles whatever arrives on
        the process group's ports, which authenticate nobody."""
        text = torch.frombuffer(bytearray(json.dumps(message).encode()), dtype=torch.uint8).to(self.device)
        with self.waiting(what):
            sizes = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(self.size)]
            dist.all_gather(sizes, torch.tensor([len(text)], device=self.device))
            longest = max(int(size) for size in sizes)
            texts = [torch.zeros(longest, dtype=torch.uint8, device=self.device) for _ in range(self.size)]
            dist.all_gather(texts, nn.functional.pad(text, (0, longest - len(text))))
        return [json.loads(t[: int(size)].cpu().numpy().tobytes()) for t, size in zip(texts, sizes, strict=True)]

    def _check_messages(self, messages: Sequence[dict[str, Any]], what: str) -> None:
        """Raise RunError if a rank has failed, or is not at the same place as this one."""
        for rank, message in enumerate(messages):
            if message.get("failed"):
                raise RunError(f"rank {rank} failed first: {message['failed']}")
        for rank, message in enumerate(messages):
            if message["at"] != what:
                raise RunError(f"rank {self.rank} is at {what!r}, but rank {rank} is at {message['at']!r}")

    def sum_named(self, named: Mapping[str, float], what: str) -> dict[str, float]:
        """Return named numbers summed over all ranks, in the same order on all; a rank may lack some names, or all."""
        if self.size == 1:
            return dict(named)
        total: dict[str, float] = {}
        for of_rank in self.gather(dict(named), what):
            for name, value in of_rank.items():
                total[name] = total.get(name, 0.0) + value
        return total

    def sum_gradients(self, parameters: Sequence[nn.Parameter], what: str) -> None:
        """Replace each parameter's .grad by its sum over all ranks; one that is missing counts as zeros there.

        In buckets of `BUCKET` elements. A gradient that no rank has stays None.
        """
        if self.size == 1:
            return
        present = torch.tensor([float(p.grad is not None) for p in parameters])
        ranks_with_gradient = self.sum(present, f"{what} (which there are)").tolist()
        for bucket in _buckets([p for p, count in zip(parameters, ranks_with_gradient, strict=True) if count]):
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
            flat = torch.cat([g.reshape(-1) for g in grads])
            with self.waiting(what):
                dist.all_reduce(flat)
            pieces = flat.split([p.numel() for p in bucket])
            for parameter, piece in zip(bucket, pieces, strict=True):
                parameter.grad = piece.view_as(parameter)

    def broadcast(self, tensors: Iterable[Tensor], what: str) -> None:
        """Overwrite tensors with rank 0's."""
        if self.size == 1:
            return
        with self.waiting(what), torch.no_grad():
            for tensor in tensors:
                sent = tensor.detach().to(self.device).contiguous()
                dist.broadcast(sent, 0)
                tensor.copy_(sent)

    # ---- shares

    def share(self, items: Sequence[T]) -> list[T]:
        """Return this rank's share of items that all ranks have: every R-th, so that shares differ by one at most."""
        return list(items[self.rank :: self.size])

    def gather_shares(self, values: Sequence[Any], what: str) -> list[Any]:
        """Undo `share`: given a JSON value for each item of this rank's share, return those of all items, in order."""
        shares = self.gather(list(values), what)
        return [shares[i % self.size][i // self.size] for i in range(sum(map(len, shares)))]

    # ---- independent work

    @contextmanager
    def independently(self, what: str) -> Iterator[None]:
        """Run a block that each rank does by itself; then go on only if it succeeded on all (`agree`)."""
        error: BaseException | None = None
        before, self.independent = self.independent, True
        try:
            yield
        except (Exception, Stopped) as raised:
            if self.size == 1:
                raise
            error = raised
        finally:
            self.independent = before
        self.agree(what, error)

    def agree(self, what: str, error: BaseException | None = None, stop: str = "") -> None:
        """Return if no rank has an error or was asked to stop; else raise that on all ranks, errors before stops.

        The error is raised as it is where it came up, as RunError on the others; a request to stop as Stopped.
        """
        if self.size == 1:
            if error or stop:
                raise error or Stopped(stop)
            return
        stop = str(error) if isinstance(error, Stopped) else stop
        failed = describe(error) if error and not isinstance(error, Stopped) else ""
        messages = self._exchange({"at": what, "failed": failed, "stop": stop}, what)
        if error is not None and failed:
            raise error
        self._check_messages(messages, what)
        reasons = [message["stop"] for message in messages if message.get("stop")]
        if reasons:
            raise Stopped(reasons[0])

    # ---- failing

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Surround a wait for other processes: the watchdog ends all ranks when it takes longer than the timeout.

        Raises RunError, with the first cause if one was reported, when the connection to another process breaks.
        """
        if self.watchdog is None:
            yield
            return
        try:
            with self.watchdog.waiting(f"{what}, {self.place}"):
                yield
        except RuntimeError as error:  # the connection to a process that has ended is broken
            cause = self.watchdog.cause(wait_s=GRACE_S)
            if cause:
                raise RunError(cause) from error
            raise RunError(f"waiting for {what}, {self.place}: {error}") from error

    def report_failure(self, error: BaseException) -> bool:
        """Tell the other ranks why this one ends. Returns whether all of them end too: they may still save together."""
        if self.watchdog is None:
            return True
        return self.watchdog.report(describe(error), self.size, GRACE_S)

    def first_cause(self) -> str:
        """Return which rank failed before this one and why; "" if none reported it."""
        try:
            return self.watchdog.cause() if self.watchdog else ""
        except RuntimeError:  # the store ended with the process that hosts it
            return ""

    def close(self) -> None:
        """Stop the watchdog. The process group ends with the process."""
        if self.watchdog:
            self.watchdog.close()


def describe(error: BaseException | None) -> str:
    """Return an error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _store() -> Any:
    """Return a second connection to the process group's store, which another thread may use."""
    store: Any = dist.distributed_c10d._get_default_store()
    return store.clone()


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Yield consecutive parameters of one dtype, at most `BUCKET` elements together, or a single larger one."""
    bucket: list[nn.Parameter] = []
    for parameter in parameters:
        full = sum(p.numel() for p in bucket) + parameter.numel() > BUCKET
        if bucket and (full or bucket[0].dtype != parameter.dtype):
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket
