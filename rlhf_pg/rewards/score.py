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
from dataclasses import dataclass
from typing import Any

from rlhf_pg.errors import RunError
from rlhf_pg.rewards.plugin import TOKEN_ARGUMENTS, Reward
from rlhf_pg.rewards.pool import Worker
from rlhf_pg.rewards.verdict import Verdict, combine, read, read_batch
from rlhf_pg.types import Sample, Score

ASYNC_GRACE_S = 1.0
POLL_S = 1.0  # the longest wait between two calls of `poll`


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
        scores = [combine(self.rewards, [row[i] for row in verdicts]) for i in range(len(samples))]
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
                self._record(worker, reply, samples, verdicts)
        late = time.monotonic() > worker.due and (worker.job is not None or not worker.ready)
        if replies is None or (late and not replies):
            self._bury(worker, queue, verdicts, late=replies is not None)

    def _record(self, worker: Worker, reply: dict[str, Any], samples: Sequence[Sample], verdicts: list[list]) -> None:
        job: Job = worker.job
        reward = self.rewards[job.reward]
        if reward.batched:
            lengths = [token_count(samples[i]) for i in job.waiting]
            for i, verdict in zip(job.waiting, read_batch(reward, reply, job.waiting, lengths), strict=True):
                verdicts[job.reward][i] = verdict
            job.waiting = []
        elif reply.get("index") in job.waiting:
            index = reply["index"]
            verdicts[job.reward][index] = read(reward, reply, index, token_count(samples[index]))
            job.waiting.remove(index)
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


def arguments(reward: Reward, sample: Sample) -> dict[str, Any]:
    """What a per-sample function is called with. The sample's own texts and tokens win over columns of the same name.

    Tokens go only to a function that names them, and only of a sample that has some.
    """
    known = sample.columns | {"prompt": sample.prompt, "completion": sample.completion, "finish": sample.finish}
    wanted = {*reward.arguments, *reward.optional}
    given = known if reward.takes_rest else {k: v for k, v in known.items() if k in wanted}
    named = wanted.intersection(TOKEN_ARGUMENTS)
    return given | {k: _tokens(k, sample) for k in named} if named and token_count(sample) else given


def batch_arguments(reward: Reward, samples: Sequence[Sample]) -> dict[str, list[Any]]:
    """What a per-batch function is called with: lists over the samples, None where a sample lacks a column."""
    known = {name: [s.columns.get(name) for s in samples] for name in {n for s in samples for n in s.columns}}
    known |= {"prompts": [s.prompt for s in samples], "completions": [s.completion for s in samples]}
    known["finish"] = [s.finish for s in samples]
    wanted = {*reward.arguments, *reward.optional}
    given = known if reward.takes_rest else {k: v for k, v in known.items() if k in wanted}
    named = wanted.intersection(TOKEN_ARGUMENTS)
    there = named and all(token_count(s) for s in samples)
    return given | {k: [_tokens(k, s) for s in samples] for k in named} if there else given


def token_count(sample: Sample) -> int:
    """Its sampled tokens; 0 when it was not sampled."""
    return sample.completion_tokens or len(sample.token_texts)


def _tokens(argument: str, sample: Sample) -> int | tuple[str, ...]:
    return token_count(sample) if argument == "completion_tokens" else getattr(sample, argument)


def _kill_all(workers: list[Worker]) -> None:
    while workers:
        workers.pop().kill()
