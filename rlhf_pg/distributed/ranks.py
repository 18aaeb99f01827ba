"""The processes of a run, and everything they tell each other. Every wait has a name and a deadline.

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
from rlhf_pg.distributed.watch import Watch
from rlhf_pg.errors import RunError

BUCKET = 2**25  # elements of one all-reduce: 128 MiB of float32
GRACE_S = 5.0  # how long a rank that failed waits for the others to fail in the same place
T = TypeVar("T")


class Ranks:
    """This process among all. `deadline_s`: the longest it waits for the others before the run is ended."""

    def __init__(self, rank: int = 0, size: int = 1, device: torch.device | str = "cpu", deadline_s: float = 1800.0):
        self.rank, self.size, self.device = rank, size, torch.device(device)
        self.place = "the start"  # what the run is at, for messages
        self.watch = Watch(rank, deadline_s, _store()) if size > 1 else None
        self.independent = size == 1  # whether in work that needs no other rank: it may be left at once

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    # ---- together

    def sum(self, values: Tensor, what: str) -> Tensor:
        """The sum of a tensor over all ranks, on the ranks' device; the same bits on all."""
        whole = values.to(self.device)
        if self.size == 1:
            return whole
        whole = whole.clone()
        with self.waiting(what):
            dist.all_reduce(whole)
        return whole

    def gather(self, value: Any, what: str) -> list[Any]:
        """Each rank's JSON value, in the order of ranks (floats keep their bits, NaN and infinity included).

        Raises RunError when another rank is not here but has failed in work of its own.
        """
        if self.size == 1:
            return [value]
        found = self._exchange({"at": what, "value": value}, what)
        self._refuse_failures(found, what)
        return [said["value"] for said in found]

    def _exchange(self, message: dict[str, Any], what: str) -> list[dict[str, Any]]:
        text = torch.frombuffer(bytearray(json.dumps(message).encode()), dtype=torch.uint8).to(self.device)
        with self.waiting(what):
            sizes = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(self.size)]
            dist.all_gather(sizes, torch.tensor([len(text)], device=self.device))
            longest = max(int(size) for size in sizes)
            texts = [torch.zeros(longest, dtype=torch.uint8, device=self.device) for _ in range(self.size)]
            dist.all_gather(texts, nn.functional.pad(text, (0, longest - len(text))))
        return [json.loads(t[: int(size)].cpu().numpy().tobytes()) for t, size in zip(texts, sizes, strict=True)]

    def _refuse_failures(self, found: Sequence[dict[str, Any]], what: str) -> None:
        """Raise RunError if a rank has failed, or is not where this one is."""
        for rank, said in enumerate(found):
            if said.get("failed"):
                raise RunError(f"rank {rank} failed first: {said['failed']}")
        for rank, said in enumerate(found):
            if said["at"] != what:
                raise RunError(f"rank {self.rank} is at {what!r}, but rank {rank} is at {said['at']!r}")

    def sum_named(self, named: Mapping[str, float], what: str) -> dict[str, float]:
        """Named numbers summed over all ranks; a rank may lack some, or all. The same on all ranks, in one order."""
        if self.size == 1:
            return dict(named)
        whole: dict[str, float] = {}
        for part in self.gather(dict(named), what):
            for name, value in part.items():
                whole[name] = whole.get(name, 0.0) + value
        return whole

    def sum_gradients(self, parameters: Sequence[nn.Parameter], what: str) -> None:
        """Replace each parameter's .grad by its sum over all ranks; one that is missing counts as zeros there.

        In buckets of `BUCKET` elements. A gradient that no rank has stays None.
        """
        if self.size == 1:
            return
        present = torch.tensor([float(p.grad is not None) for p in parameters])
        present = self.sum(present, f"{what} (which there are)").tolist()
        some = [p for p, ranks in zip(parameters, present, strict=True) if ranks]
        for bucket in _buckets(some):
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
            flat = torch.cat([g.reshape(-1) for g in grads])
            with self.waiting(what):
                dist.all_reduce(flat)
            pieces = flat.split([p.numel() for p in bucket])
            for parameter, piece in zip(bucket, pieces, strict=True):
                parameter.grad = piece.view_as(parameter)

    def broadcast(self, tensors: Iterable[Tensor], what: str) -> None:
        """Overwrite tensors by rank 0's."""
        if self.size == 1:
            return
        with self.waiting(what), torch.no_grad():
            for tensor in tensors:
                held = tensor.detach().to(self.device).contiguous()
                dist.broadcast(held, 0)
                tensor.copy_(held)

    # ---- shares

    def share(self, items: Sequence[T]) -> list[T]:
        """This rank's part of what all ranks have: every R-th, so that shares differ by one at most."""
        return list(items[self.rank :: self.size])

    def gather_shares(self, mine: Sequence[Any], what: str) -> list[Any]:
        """Undo `share`: JSON values of all ranks' items, in the order of the whole."""
        parts = self.gather(list(mine), what)
        return [parts[i % self.size][i // self.size] for i in range(sum(map(len, parts)))]

    # ---- independent work

    @contextmanager
    def independently(self, what: str) -> Iterator[None]:
        """Work that each rank does by itself. All leave it when each is done, or none goes on.

        `independent` is True inside: a request to stop may then be followed at once.
        """
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
        """Go on only if no rank has an error or was asked to stop: else raise it on all ranks, errors first."""
        if self.size == 1:
            if error or stop:
                raise error or Stopped(stop)
            return
        stop = str(error) if isinstance(error, Stopped) else stop
        failed = describe(error) if error and not isinstance(error, Stopped) else ""
        found = self._exchange({"at": what, "failed": failed, "stop": stop}, what)
        if error is not None and failed:
            raise error
        self._refuse_failures(found, what)
        reasons = [said["stop"] for said in found if said.get("stop")]
        if reasons:
            raise Stopped(reasons[0])

    # ---- failing

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Around every wait for other processes: ended, on all ranks, when it takes longer than the deadline."""
        if self.watch is None:
            yield
            return
        try:
            with self.watch.waiting(f"{what}, {self.place}"):
                yield
        except RuntimeError as error:  # the connection to a process that has ended
            cause = self.watch.cause(wait_s=GRACE_S)
            if cause:
                raise RunError(cause) from error
            raise RunError(f"waiting for {what}, {self.place}: {error}") from error

    def report_failure(self, error: BaseException) -> bool:
        """Tell the other ranks why this one ends. Returns whether all of them have failed too, in the same place: then
        they may still save together."""
        if self.watch is None:
            return True
        return self.watch.leave(describe(error), self.size, GRACE_S)

    def first_cause(self) -> str:
        """What to say of an error that came after another rank's; "" if none failed before."""
        try:
            return self.watch.cause() if self.watch else ""
        except RuntimeError:  # the store went with the process that kept it
            return ""

    def close(self) -> None:
        """Stop watching. The process group goes with the process."""
        if self.watch:
            self.watch.close()


def describe(error: BaseException | None) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _store() -> Any:
    """A connection of our own to the store through which the processes found each other: usable by another thread."""
    store: Any = dist.distributed_c10d._get_default_store()
    return store.clone()


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Consecutive parameters of one dtype, at most `BUCKET` elements together, or one."""
    bucket: list[nn.Parameter] = []
    for parameter in parameters:
        full = sum(p.numel() for p in bucket) + parameter.numel() > BUCKET
        if bucket and (full or bucket[0].dtype != parameter.dtype):
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket
