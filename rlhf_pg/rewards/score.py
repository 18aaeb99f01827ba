"""Scores of samples: reward functions run in worker processes that can be killed, and every score has an outcome.

A function that fails never makes a reward of 0: the sample is left out (`reward` None) and `detail` says why. When
every sample of a batch fails, RunError is raised with the first cause, so that training stops.
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
from rlhf_pg.rewards import plugin
from rlhf_pg.rewards.arguments import batch_arguments, sample_arguments, token_count
from rlhf_pg.rewards.plugin import Reward
from rlhf_pg.rewards.values import to_json
from rlhf_pg.rewards.verdict import Verdict, combine, memory_limit, parse_batch_reply, parse_reply
from rlhf_pg.rewards.worker_process import WorkerProcess
from rlhf_pg.types import Sample, Score

ASYNC_GRACE_S = 1.0
POLL_S = 1.0  # the longest wait between two calls of `poll`


@dataclass
class Job:
    """One reward function over some samples. `pending`: the indices, in order, that have no verdict yet."""

    reward: int
    pending: list[int]


class Scorer:
    """Scores samples with reward functions in `workers` processes, started when needed.

    Not for several threads at once. Raises ValueError when two functions have one name.
    """

    def __init__(self, rewards: Sequence[Reward], *, workers: int = 2) -> None:
        plugin.require_distinct_names(rewards)
        if not rewards or workers < 1:
            raise ValueError("a scorer needs at least one reward function and one worker")
        self.rewards = tuple(rewards)
        self.size = workers
        self.workers: list[WorkerProcess] = []
        self.in_use = False  # by a `Scoring`
        self._finalizer = weakref.finalize(self, _kill_all, self.workers)

    def score(self, samples: Sequence[Sample], poll: Callable[[], None] = lambda: None) -> list[Score]:
        """Return one Score per sample, in order. `poll` is called at least every second; if it raises, scoring ends.

        Raises RunError when no worker can start or every sample failed.
        """
        with self.open(len(samples)) as scoring:
            scoring.add(dict(enumerate(samples)))
            return scoring.finish(poll)

    def open(self, count: int) -> Scoring:
        """Return a Scoring of `count` samples that arrive over time. Raises ValueError while another one is open."""
        return Scoring(self, count)

    def close(self) -> None:
        """Kill the worker processes. A later use starts new ones."""
        _kill_all(self.workers)

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Scoring:
    """One batch of samples being scored. Leaving it before the end kills the scorer's workers.

        with scorer.open(count) as scoring:
            scoring.add({0: sample, ...})  # in any order, as they arrive; neither this nor `pump` ever waits
            scoring.pump()                 # now and then, so that replies are read and late calls are killed
            scores = scoring.finish()

    Per-sample functions start at once; per-batch functions are called in `finish`, with all samples.
    """

    def __init__(self, scorer: Scorer, count: int) -> None:
        if scorer.in_use:
            raise ValueError("the scorer is at work on other samples: finish those first, or use another scorer")
        self.scorer, self.rewards = scorer, scorer.rewards
        self.job_size = max(1, math.ceil(count / (4 * scorer.size)))  # the most samples of a job
        self.samples: dict[int, Sample] = {}
        self.queues: list[deque[int]] = [deque() for _ in self.rewards]  # of samples that are in no job yet
        self.jobs: deque[Job] = deque()  # for the next idle workers, before what is in `queues`
        self.verdicts: list[dict[int, Verdict]] = [{} for _ in self.rewards]

    def __enter__(self) -> Scoring:
        self.scorer.in_use = True
        for worker in self.scorer.workers:
            worker.clear_log()
        return self

    def __exit__(self, *exc: object) -> None:
        self.scorer.in_use = False
        if self._unfinished():
            self.scorer.close()  # a worker may be in the middle of a job that nobody waits for

    def add(self, samples: Mapping[int, Sample]) -> None:
        """Take samples by index, each index once, and start what idle workers can do. Raises as `pump` does."""
        twice = sorted(self.samples.keys() & samples.keys())
        if twice:
            raise ValueError(f"sample {twice[0]} was added before: give each sample an index of its own")
        self.samples |= samples
        for reward, queue in zip(self.rewards, self.queues, strict=True):
            if not reward.batched:
                queue.extend(samples)
        self.pump()

    def pump(self) -> None:
        """Read the replies that have arrived, kill late calls and give idle workers jobs, without waiting.

        Raises RunError when no worker can start, ValueError for a value that cannot be sent.
        """
        self._read_replies()
        self._assign()

    def finish(self, poll: Callable[[], None] = lambda: None) -> list[Score]:
        """Wait for the remaining verdicts and return one Score per sample, by index.

        `poll` is called at least every second; if it raises, scoring ends. Raises RunError when no worker can start or
        every sample failed.
        """
        order = sorted(self.samples)
        self.jobs += [Job(n, list(order)) for n, reward in enumerate(self.rewards) if reward.batched and order]
        while self._unfinished():
            self._assign()
            self._wait()
            poll()
            self._read_replies()
        scores = [combine(self.rewards, [verdicts[i] for verdicts in self.verdicts]) for i in order]
        if scores and all(s.reward is None and s.outcome in ("error", "timeout") for s in scores):
            raise RunError(f"every one of {len(scores)} samples failed to be scored; the first: {scores[0].detail}")
        return scores

    def _unfinished(self) -> bool:
        return bool(self.jobs) or any(self.queues) or any(w.job for w in self.scorer.workers)

    def _assign(self) -> None:
        """Give every idle worker a job; start workers as long as there are more jobs than workers being started."""
        workers = self.scorer.workers
        for worker in workers:
            if worker.ready and worker.job is None and (job := self._next_job()):
                self._send(worker, job)
        starting = sum(not w.ready for w in workers)
        jobs = len(self.jobs) + sum(math.ceil(len(queue) / self.job_size) for queue in self.queues)
        while len(workers) < self.scorer.size and starting < jobs:
            workers.append(WorkerProcess(self.rewards))
            starting += 1

    def _next_job(self) -> Job | None:
        if self.jobs:
            return self.jobs.popleft()
        for number, queue in enumerate(self.queues):
            if queue:
                return Job(number, [queue.popleft() for _ in range(min(self.job_size, len(queue)))])
        return None

    def _send(self, worker: WorkerProcess, job: Job) -> None:
        reward = self.rewards[job.reward]
        if reward.batched:
            calls = [[None, batch_arguments(reward, [self.samples[i] for i in job.pending])]]
        else:
            calls = [[i, sample_arguments(reward, self.samples[i])] for i in job.pending]
        worker.job, worker.due = job, _due(reward)
        try:
            worker.send({"reward": job.reward, "calls": to_json(calls)})
        except TypeError as error:  # `arguments.check_rows` finds it before a run
            raise ValueError(f"a data column holds what cannot be sent to a worker: {error}") from error

    def _wait(self) -> None:
        """Sleep until a worker replies, takes more input, or is late, at most POLL_S."""
        busy = [w for w in self.scorer.workers if w.job or not w.ready]
        poll = select.poll()
        for worker in busy:
            poll.register(worker.stdout, select.POLLIN)
            if worker.outbox:
                poll.register(worker.stdin, select.POLLOUT)
        remaining = min(w.deadline for w in busy) - time.monotonic()
        poll.poll(min(max(0.0, remaining), POLL_S) * 1000)

    def _read_replies(self) -> None:
        for worker in list(self.scorer.workers):
            if worker.job is not None or not worker.ready:
                self._read_replies_of(worker)

    def _read_replies_of(self, worker: WorkerProcess) -> None:
        """Record the replies of one worker; replace the worker when it is late or has ended."""
        if worker.flush() and worker.job is not None:
            worker.due = _due(self.rewards[worker.job.reward])  # the time of a call starts when it has been sent
        replies = worker.receive()
        for reply in replies or []:
            if not worker.ready:
                if "ready" not in reply:
                    raise RunError(_load_failure(self.rewards, reply))
                worker.ready = True
            elif worker.job is not None:
                self._record(worker, reply)
        # Late only if nothing has arrived by now: during a decode step nobody reads, and what was answered counts.
        late = time.monotonic() > worker.deadline and (worker.job is not None or not worker.ready)
        if replies is None:
            self._replace(worker, late=worker.ended_by_its_timer())
        elif late and not replies:
            self._replace(worker, late=True)

    def _record(self, worker: WorkerProcess, reply: dict[str, Any]) -> None:
        job: Job = worker.job
        reward, verdicts = self.rewards[job.reward], self.verdicts[job.reward]
        if reward.batched:
            lengths = [token_count(self.samples[i]) for i in job.pending]
            verdicts.update(zip(job.pending, parse_batch_reply(reward, reply, job.pending, lengths), strict=True))
            job.pending = []
        elif (index := reply.get("index")) in job.pending:
            verdicts[index] = parse_reply(reward, reply, index, token_count(self.samples[index]))
            job.pending.remove(index)
            if not reward.is_async:
                worker.due = _due(reward)
        if not job.pending:
            worker.job = None

    def _replace(self, worker: WorkerProcess, late: bool) -> None:
        """Kill a worker, blame the call it was in, and queue the rest of its job.

        Asynchronous calls run together, so none can be blamed: each becomes a job of its own.
        """
        self.scorer.workers.remove(worker)
        current, how = worker.current_index(), worker.kill()
        if not worker.ready:
            raise RunError(f"reward functions cannot be loaded in a worker: {how}")
        job: Job | None = worker.job
        if job is None:
            return
        reward = self.rewards[job.reward]
        if reward.is_async and not reward.batched and len(job.pending) > 1:
            self.jobs.extendleft(Job(job.reward, [i]) for i in reversed(job.pending))
            return
        first = current if current in job.pending else job.pending[0]  # it may have ended before its first call
        blamed = job.pending if reward.batched or reward.is_async else [first]
        if late:
            cause = {"limit": f"no answer within {reward.timeout_s:g} s", "late": True}
        else:  # a signal is how libraries in C end when they get no memory
            cause = {"limit": how, "memory": worker.returncode is not None and worker.returncode < 0}
        for i in blamed:
            self.verdicts[job.reward][i] = parse_reply(reward, cause, i)
        rest = [i for i in job.pending if i not in blamed]
        if rest:
            self.jobs.appendleft(Job(job.reward, rest))


def _load_failure(rewards: Sequence[Reward], reply: dict[str, Any]) -> str:
    reward = rewards[reply["reward"]] if "reward" in reply else None
    named = f"reward {reward.fn!r}" if reward else "reward functions"
    text = f"{named} cannot be loaded in a worker: {reply.get('failed')}"
    return f"{text}; {memory_limit(reward)}" if reward and reply.get("memory") else text


def _due(reward: Reward) -> float:
    return time.monotonic() + reward.timeout_s + (ASYNC_GRACE_S if reward.is_async else 0.0)


def _kill_all(workers: list[WorkerProcess]) -> None:
    while workers:
        workers.pop().kill()
