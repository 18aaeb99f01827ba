"""Scores for samples: reward functions run in killable worker processes, each verdict with its outcome.

A fault of a function is never a reward of 0: the sample is left out (`reward` None) and says why. When every sample
of a call fails, RunError: training must stop, not spin.
"""

from __future__ import annotations

import math
import select
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from rlhf_pg.errors import RunError
from rlhf_pg.rewards.plugin import Reward
from rlhf_pg.rewards.pool import Worker
from rlhf_pg.types import Outcome, Sample, Score

PRECEDENCE: tuple[Outcome, ...] = ("error", "excluded", "timeout", "truncated", "unparseable", "scored")
ASYNC_GRACE_S = 1.0
POLL_S = 1.0  # the longest wait between two calls of `poll`


@dataclass(frozen=True)
class Verdict:
    """What one function says of one sample."""

    reward: float | None
    outcome: Outcome
    detail: str = ""
    parts: dict[str, float | None] = field(default_factory=dict)


@dataclass
class Job:
    """One function over some samples; an index leaves `waiting` when its verdict is in."""

    reward: int
    waiting: list[int]  # in order


class Scorer:
    """Scores samples with the given functions; `workers` processes of `memory_mb` address space each, started on use.

    Not for several threads at once. Raises ValueError when two functions have one name.
    """

    def __init__(self, rewards: Sequence[Reward], *, workers: int = 2, memory_mb: int = 2048) -> None:
        names = [r.name for r in rewards]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"two reward functions are called {twice[0]!r}: rename one, or list it once")
        if not rewards or workers < 1:
            raise ValueError("a scorer needs at least one reward function and one worker")
        self.rewards = tuple(rewards)
        self.size, self.memory_mb = workers, memory_mb
        self._workers: list[Worker] = []
        self._finalizer = weakref.finalize(self, _kill_all, self._workers)

    def score(self, samples: Sequence[Sample], poll: Callable[[], None] = lambda: None) -> list[Score]:
        """One Score per sample, in order. `poll` is called at least every second and may raise, to leave at once.

        Raises RunError when no worker can start or every sample failed.
        """
        verdicts: list[list[Verdict | None]] = [[None] * len(samples) for _ in self.rewards]
        queue = deque(self._jobs(len(samples)))
        for worker in self._workers:
            worker.forget_log()
        try:
            while queue or any(w.job for w in self._workers):
                self._assign(queue, samples)
                self._wait()
                poll()
                for worker in list(self._workers):
                    self._step(worker, samples, queue, verdicts)
        except BaseException:
            self.close()  # a worker may be in the middle of a job that nobody waits for
            raise
        scores = [self._combine([row[i] for row in verdicts]) for i in range(len(samples))]
        if scores and all(s.reward is None and s.outcome in ("error", "timeout") for s in scores):
            raise RunError(f"every one of {len(scores)} samples failed to be scored; the first: {scores[0].detail}")
        return scores

    def close(self) -> None:
        """End the worker processes. A later `score` starts new ones."""
        _kill_all(self._workers)

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _jobs(self, count: int) -> list[Job]:
        step = max(1, math.ceil(count / (4 * self.size)))
        jobs = []
        for number, reward in enumerate(self.rewards):
            size = max(1, count) if reward.batched else step
            jobs += [Job(number, list(range(i, min(i + size, count)))) for i in range(0, count, size)]
        return jobs

    def _assign(self, queue: deque[Job], samples: Sequence[Sample]) -> None:
        for worker in self._workers:
            if queue and worker.ready and worker.job is None:
                worker.job = job = queue.popleft()
                reward = self.rewards[job.reward]
                if reward.batched:
                    calls = [[None, batch_arguments(reward, [samples[i] for i in job.waiting])]]
                else:
                    calls = [[i, arguments(reward, samples[i])] for i in job.waiting]
                worker.due = time.monotonic() + self._limit(reward)
                try:
                    worker.send({"reward": job.reward, "calls": calls})
                except TypeError as error:
                    raise ValueError(f"a data column holds something that is not a JSON value: {error}") from error
        starting = sum(not w.ready for w in self._workers)
        while len(self._workers) < self.size and starting < len(queue):
            self._workers.append(Worker(self.rewards, self.memory_mb))
            starting += 1

    def _limit(self, reward: Reward) -> float:
        return reward.timeout_s + (ASYNC_GRACE_S if reward.is_async else 0.0)

    def _wait(self) -> None:
        """Sleep until a worker says something, takes more input, or runs out of time."""
        busy = [w for w in self._workers if w.job or not w.ready]
        poll = select.poll()
        for worker in busy:
            poll.register(worker.stdout, select.POLLIN)
            if worker.outbox:
                poll.register(worker.stdin, select.POLLOUT)
        remaining = min(w.due for w in busy) - time.monotonic()
        poll.poll(min(max(0.0, remaining), POLL_S) * 1000)

    def _step(self, worker: Worker, samples: Sequence[Sample], queue: deque[Job], verdicts: list[list]) -> None:
        """Take in what one worker has said; replace it when it is late or gone."""
        if worker.ready and worker.job is None:
            return
        worker.flush()
        replies = worker.receive()
        for reply in replies or []:
            if not worker.ready:
                if "ready" not in reply:
                    raise RunError(f"reward functions cannot be loaded in a worker: {reply.get('failed')}")
                worker.ready = True
            elif worker.job is not None:
                self._record(worker, reply, verdicts)
        late = time.monotonic() > worker.due and (worker.job is not None or not worker.ready)
        if replies is None or (late and not replies):
            self._bury(worker, queue, verdicts, late=replies is not None)

    def _record(self, worker: Worker, reply: dict[str, Any], verdicts: list[list]) -> None:
        job: Job = worker.job
        reward = self.rewards[job.reward]
        if reward.batched:
            for i, verdict in zip(job.waiting, read_batch(reward, reply, job.waiting), strict=True):
                verdicts[job.reward][i] = verdict
            job.waiting = []
        elif reply.get("index") in job.waiting:
            verdicts[job.reward][reply["index"]] = read(reward, reply, reply["index"])
            job.waiting.remove(reply["index"])
            if not reward.is_async:
                worker.due = time.monotonic() + self._limit(reward)
        if not job.waiting:
            worker.job = None

    def _bury(self, worker: Worker, queue: deque[Job], verdicts: list[list], late: bool) -> None:
        """Kill a worker, blame the call it was in, and queue what it had not reached."""
        self._workers.remove(worker)
        current, how = worker.current(), worker.kill()
        if not worker.ready:
            raise RunError(f"reward functions cannot be loaded in a worker: {how}")
        job: Job | None = worker.job
        if job is None:
            return
        reward = self.rewards[job.reward]
        if reward.is_async and not reward.batched and len(job.waiting) > 1:
            queue.extendleft(Job(job.reward, [i]) for i in reversed(job.waiting))  # one of them: find out which
            return
        blamed = job.waiting if reward.batched or reward.is_async else [current]
        cause = {"limit": f"no answer within {reward.timeout_s:g} s", "late": True} if late else {"limit": how}
        for i in blamed:
            verdicts[job.reward][i] = read(reward, cause, i)
        rest = [i for i in job.waiting if i not in blamed]
        if rest:
            queue.appendleft(Job(job.reward, rest))

    def _combine(self, verdicts: list[Verdict | None]) -> Score:
        """The weighted sum of the functions; the gravest outcome; any sample one function leaves out is left out."""
        found = [v for v in verdicts if v is not None]
        parts: dict[str, float | None] = {}
        for reward, verdict in zip(self.rewards, found, strict=True):
            parts[reward.name] = verdict.reward
            parts |= {f"{reward.name}/{name}": value for name, value in verdict.parts.items()}
        values = [v.reward for v in found]
        total = math.fsum(r.weight * v for r, v in zip(self.rewards, values, strict=True) if v is not None)
        worst = min(found, key=lambda v: (v.reward is not None, PRECEDENCE.index(v.outcome)))
        detail = "; ".join(v.detail for v in found if v.detail)
        return Score(None if None in values else total, parts, worst.outcome, detail)


def arguments(reward: Reward, sample: Sample) -> dict[str, Any]:
    """What a per-sample function is called with. The sample's own texts win over columns of the same name."""
    known = sample.columns | {"prompt": sample.prompt, "completion": sample.completion, "finish": sample.finish}
    wanted = {*reward.arguments, *reward.optional}
    return known if reward.takes_rest else {k: v for k, v in known.items() if k in wanted}


def batch_arguments(reward: Reward, samples: Sequence[Sample]) -> dict[str, list[Any]]:
    """What a per-batch function is called with: lists over the samples, None where a sample lacks a column."""
    known = {name: [s.columns.get(name) for s in samples] for name in {n for s in samples for n in s.columns}}
    known |= {"prompts": [s.prompt for s in samples], "completions": [s.completion for s in samples]}
    known["finish"] = [s.finish for s in samples]
    wanted = {*reward.arguments, *reward.optional}
    return known if reward.takes_rest else {k: v for k, v in known.items() if k in wanted}


def read_batch(reward: Reward, reply: dict[str, Any], indices: Sequence[int]) -> list[Verdict]:
    """Verdicts of a per-batch function, which must return one value per sample."""
    values = reply.get("value")
    if "value" not in reply:
        return [read(reward, reply, i) for i in indices]
    if not isinstance(values, list) or len(values) != len(indices):
        got = f"{len(values)} values" if isinstance(values, list) else f"a {type(values).__name__}"
        fault = {"error": f"returned {got} for {len(indices)} samples; it must return a list of that length"}
        return [read(reward, fault, i) for i in indices]
    return [read(reward, {"value": value}, i) for i, value in zip(indices, values, strict=True)]


def read(reward: Reward, reply: dict[str, Any], index: int) -> Verdict:
    """The verdict in a worker's reply about one sample."""
    where = f"{reward.name}, sample {index}: "
    if "limit" in reply:
        if reward.on_limit is not None:
            return Verdict(reward.on_limit, "timeout", f"{where}{reply['limit']}")
        return Verdict(None, "timeout" if "late" in reply else "error", f"{where}{reply['limit']}")
    if "value" not in reply:
        return Verdict(None, "error", f"{where}{reply.get('error', 'no value in the reply')}")
    value = reply["value"]
    if value is None:
        return Verdict(None, "excluded")
    if isinstance(value, dict):
        return _read_parts(where, value)
    number = _number(value)
    if number is None:
        return Verdict(None, "error", f"{where}returned {str(value)[:80]!r}, not a finite number")
    return Verdict(number, "scored")


def _read_parts(where: str, value: dict[str, Any]) -> Verdict:
    """A dict: `reward` if it has that key, else the sum of its parts; `outcome` and `detail` are not parts."""
    outcome = value.get("outcome", "scored")
    if outcome not in get_args(Outcome):
        return Verdict(None, "error", f"{where}outcome {str(outcome)[:40]!r} is none of {', '.join(get_args(Outcome))}")
    parts: dict[str, float | None] = {}
    for name, part in value.items():
        if name not in ("outcome", "detail"):
            parts[name] = None if part is None else _number(part)
            if part is not None and parts[name] is None:
                return Verdict(None, "error", f"{where}part {name!r} is {str(part)[:80]!r}, not a finite number")
    detail = where + str(value["detail"])[:500] if value.get("detail") else ""
    numbers = [v for v in parts.values() if v is not None]
    reward = parts.pop("reward") if "reward" in parts else math.fsum(numbers)
    if outcome in ("error", "excluded") or reward is None:
        return Verdict(None, outcome if outcome != "scored" else "excluded", detail, parts)
    if not parts and "reward" not in value and outcome == "scored":
        return Verdict(None, "error", f"{where}returned a dict without a number")
    return Verdict(reward, outcome, detail, parts)


def _number(value: Any) -> float | None:
    """A finite float; True and False count as 1 and 0. None for anything else."""
    try:
        number = float(value) if isinstance(value, bool | int | float) else math.nan
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _kill_all(workers: list[Worker]) -> None:
    while workers:
        workers.pop().kill()
