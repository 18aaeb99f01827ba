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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_pg.errors import RunError
from rlhf_pg.rewards.arguments import arguments, batch_arguments, token_count
from rlhf_pg.rewards.plugin import Reward
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
        self.workers: list[Worker] = []
        self.at_work = False  # on the samples of a `Scoring`
        self._finalizer = weakref.finalize(self, _kill_all, self.workers)

    def score(self, samples: Sequence[Sample], poll: Callable[[], None] = lambda: None) -> list[Score]:
        """One Score per sample, in order. `poll` is called at least every second and may raise, to leave at once.

        Raises RunError when no worker can start or every sample failed.
        """
        with self.open(len(samples)) as scoring:
            scoring.add(dict(enumerate(samples)))
            return scoring.finish(poll)

    def open(self, count: int) -> Scoring:
        """For `count` samples that come little by little. Raises ValueError while others are being scored."""
        return Scoring(self, count)

    def close(self) -> None:
        """End the worker processes. A later use starts new ones."""
        _kill_all(self.workers)

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Scoring:
    """One batch of samples on its way through a scorer's workers; left before its end, it takes the workers with it.

        with scorer.open(count) as scoring:
            scoring.add({0: sample, ...})  # in any order, as they come; neither this nor `pump` ever waits
            scoring.pump()                 # between other work, so that replies are taken and deadlines kept
            scores = scoring.finish()

    Functions of one sample start at once; functions of a batch get the whole of it in `finish`.
    """

    def __init__(self, scorer: Scorer, count: int) -> None:
        if scorer.at_work:
            raise ValueError("the scorer is at work on other samples: finish those first, or use another scorer")
        self.scorer, self.rewards = scorer, scorer.rewards
        self.share = max(1, math.ceil(count / (4 * scorer.size)))  # the most samples a job has
        self.samples: dict[int, Sample] = {}
        self.waiting: list[deque[int]] = [deque() for _ in self.rewards]  # for a place in a job
        self.jobs: deque[Job] = deque()  # for a worker, before any of `waiting`
        self.verdicts: list[dict[int, Verdict]] = [{} for _ in self.rewards]

    def __enter__(self) -> Scoring:
        self.scorer.at_work = True
        for worker in self.scorer.workers:
            worker.forget_log()
        return self

    def __exit__(self, *exc: object) -> None:
        self.scorer.at_work = False
        if self._unfinished():
            self.scorer.close()  # a worker may be in the middle of a job that nobody waits for

    def add(self, samples: Mapping[int, Sample]) -> None:
        """Take samples by index, each index once, and give idle workers what there is. Raises as `pump` does."""
        twice = sorted(self.samples.keys() & samples.keys())
        if twice:
            raise ValueError(f"sample {twice[0]} was added before: give each sample an index of its own")
        self.samples |= samples
        for reward, waiting in zip(self.rewards, self.waiting, strict=True):
            if not reward.batched:
                waiting.extend(samples)
        self.pump()

    def pump(self) -> None:
        """Take the replies that are there, end the calls whose time is up, give idle workers something to do.

        Raises RunError when no worker can start, ValueError for a data column that is no JSON value.
        """
        for worker in list(self.scorer.workers):
            self._step(worker)
        self._assign()

    def finish(self, poll: Callable[[], None] = lambda: None) -> list[Score]:
        """Wait for what is left. One Score per sample, by index. `poll` is called at least every second and may raise,
        to leave at once. Raises RunError when no worker can start or every sample failed."""
        order = sorted(self.samples)
        self.jobs += [Job(n, list(order)) for n, reward in enumerate(self.rewards) if reward.batched and order]
        while self._unfinished():
            self._assign()
            self._wait()
            poll()
            for worker in list(self.scorer.workers):
                self._step(worker)
        scores = [combine(self.rewards, [given[i] for given in self.verdicts]) for i in order]
        if scores and all(s.reward is None and s.outcome in ("error", "timeout") for s in scores):
            raise RunError(f"every one of {len(scores)} samples failed to be scored; the first: {scores[0].detail}")
        return scores

    def _unfinished(self) -> bool:
        return bool(self.jobs) or any(self.waiting) or any(w.job for w in self.scorer.workers)

    def _assign(self) -> None:
        """Give every idle worker a job; start workers while there is more to do than they will be enough for."""
        workers = self.scorer.workers
        for worker in workers:
            if worker.ready and worker.job is None and (job := self._next_job()):
                self._send(worker, job)
        starting = sum(not w.ready for w in workers)
        ahead = len(self.jobs) + sum(math.ceil(len(waiting) / self.share) for waiting in self.waiting)
        while len(workers) < self.scorer.size and starting < ahead:
            workers.append(Worker(self.rewards, self.scorer.memory_mb))
            starting += 1

    def _next_job(self) -> Job | None:
        if self.jobs:
            return self.jobs.popleft()
        for number, waiting in enumerate(self.waiting):
            if waiting:
                return Job(number, [waiting.popleft() for _ in range(min(self.share, len(waiting)))])
        return None

    def _send(self, worker: Worker, job: Job) -> None:
        reward = self.rewards[job.reward]
        if reward.batched:
            calls = [[None, batch_arguments(reward, [self.samples[i] for i in job.waiting])]]
        else:
            calls = [[i, arguments(reward, self.samples[i])] for i in job.waiting]
        worker.job, worker.due = job, time.monotonic() + _limit(reward)
        try:
            worker.send({"reward": job.reward, "calls": calls})
        except TypeError as error:
            raise ValueError(f"a data column holds something that is not a JSON value: {error}") from error

    def _wait(self) -> None:
        """Sleep until a worker says something, takes more input, or runs out of time."""
        busy = [w for w in self.scorer.workers if w.job or not w.ready]
        poll = select.poll()
        for worker in busy:
            poll.register(worker.stdout, select.POLLIN)
            if worker.outbox:
                poll.register(worker.stdin, select.POLLOUT)
        remaining = min(w.deadline for w in busy) - time.monotonic()
        poll.poll(min(max(0.0, remaining), POLL_S) * 1000)

    def _step(self, worker: Worker) -> None:
        """Take in what one worker has said; replace it when it is late or gone.

        It is late only by what has not arrived by now: nobody may have looked for long, as while a batch is decoded.
        """
        if worker.ready and worker.job is None:
            return
        if worker.flush() and worker.job is not None:
            worker.due = time.monotonic() + _limit(self.rewards[worker.job.reward])  # it has only now been told
        replies = worker.receive()
        for reply in replies or []:
            if not worker.ready:
                if "ready" not in reply:
                    raise RunError(f"reward functions cannot be loaded in a worker: {reply.get('failed')}")
                worker.ready = True
            elif worker.job is not None:
                self._record(worker, reply)
        late = time.monotonic() > worker.deadline and (worker.job is not None or not worker.ready)
        if replies is None:
            self._bury(worker, late=worker.ended_by_its_timer())
        elif late and not replies:
            self._bury(worker, late=True)

    def _record(self, worker: Worker, reply: dict[str, Any]) -> None:
        job: Job = worker.job
        reward, given = self.rewards[job.reward], self.verdicts[job.reward]
        if reward.batched:
            lengths = [token_count(self.samples[i]) for i in job.waiting]
            given.update(zip(job.waiting, read_batch(reward, reply, job.waiting, lengths), strict=True))
            job.waiting = []
        elif (index := reply.get("index")) in job.waiting:
            given[index] = read(reward, reply, index, token_count(self.samples[index]))
            job.waiting.remove(index)
            if not reward.is_async:
                worker.due = time.monotonic() + _limit(reward)
        if not job.waiting:
            worker.job = None

    def _bury(self, worker: Worker, late: bool) -> None:
        """Kill a worker, blame the call it was in, and queue what it had not reached."""
        self.scorer.workers.remove(worker)
        current, how = worker.current(), worker.kill()
        if not worker.ready:
            raise RunError(f"reward functions cannot be loaded in a worker: {how}")
        job: Job | None = worker.job
        if job is None:
            return
        reward = self.rewards[job.reward]
        if reward.is_async and not reward.batched and len(job.waiting) > 1:
            self.jobs.extendleft(Job(job.reward, [i]) for i in reversed(job.waiting))  # one of them: find out which
            return
        first = current if current in job.waiting else job.waiting[0]  # it may not have come to its first call
        blamed = job.waiting if reward.batched or reward.is_async else [first]
        cause = {"limit": f"no answer within {reward.timeout_s:g} s", "late": True} if late else {"limit": how}
        for i in blamed:
            self.verdicts[job.reward][i] = read(reward, cause, i)
        rest = [i for i in job.waiting if i not in blamed]
        if rest:
            self.jobs.appendleft(Job(job.reward, rest))


def _limit(reward: Reward) -> float:
    return reward.timeout_s + (ASYNC_GRACE_S if reward.is_async else 0.0)


def _kill_all(workers: list[Worker]) -> None:
    while workers:
        workers.pop().kill()
