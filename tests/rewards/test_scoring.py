"""Samples scored as they come: nothing waits, nothing is held back, and only a function that is late is blamed."""

import os
import select
import signal
import time
from pathlib import Path

import pytest

from rlhf_pg.rewards import plugin
from rlhf_pg.rewards.score import Scorer
from rlhf_pg.rewards.worker_process import WorkerProcess
from rlhf_pg.types import Sample

PLUGINS = """
import os, pathlib, signal, time
HERE = pathlib.Path(__file__).parent

def length_of(completion):
    return len(completion)

def noted(completion):
    (HERE / f"called {completion}").touch()
    return len(completion)

def places(completions):
    return [100.0 * n + len(c) for n, c in enumerate(completions)]

def of_tokens(completion, completion_tokens):
    return [0.5] * completion_tokens

def hangs(completion):
    if completion == "hang":
        time.sleep(600)
    return len(completion)

def ends(completion):
    if completion.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, completion))
    return 1.0
"""


@pytest.fixture
def new_scorer(tmp_path: Path):
    """A function from names of the functions above to a scorer."""
    (tmp_path / "mine.py").write_text(PLUGINS)
    opened: list[Scorer] = []

    def build(*names: str, timeout_s: float = 60.0, workers: int = 2) -> Scorer:
        rewards = [plugin.resolve(f"{tmp_path}/mine.py:{name}", timeout_s=timeout_s) for name in names]
        opened.append(Scorer(rewards, workers=workers))
        return opened[-1]

    yield build
    for scorer in opened:
        scorer.close()


def texts(*completions: str, start: int = 0) -> dict[int, Sample]:
    return {n: Sample("p", c) for n, c in enumerate(completions, start)}


def until(condition, scoring) -> None:
    """Pump until it holds; a minute is far more than any needs."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "did not happen by pumping"
        scoring.pump()
        time.sleep(0.005)


def away_until_late(scorer: Scorer) -> None:
    """Nobody looks, as while a batch is decoded: the reply begins to arrive, and then the time is up."""
    (worker,) = scorer.workers
    assert select.select([worker.stdout], [], [], 60)[0]
    time.sleep(max(0.0, worker.due - time.monotonic()) + 0.01)


def started(scorer: Scorer, scoring) -> None:
    """All workers of the scorer are there and idle."""
    until(lambda: len(scorer.workers) == scorer.size and all(w.ready and not w.job for w in scorer.workers), scoring)


def test_scores_come_back_by_index_whatever_the_order_samples_come_in(new_scorer):
    with new_scorer("length_of", "places").open(6) as scoring:
        for n in (4, 0, 5):
            scoring.add(texts("x" * n, start=n))
        scoring.add({n: Sample("p", "x" * n) for n in (3, 1, 2)})
        scores = scoring.finish()
    assert [s.parts for s in scores] == [{"length_of": n, "places": 101.0 * n} for n in range(6)]


def test_a_function_is_called_before_later_samples_are_there(new_scorer, tmp_path):
    with new_scorer("noted").open(2) as scoring:
        scoring.add(texts("first"))
        until((tmp_path / "called first").exists, scoring)
        scoring.add(texts("second", start=1))
        assert [s.reward for s in scoring.finish()] == [5.0, 6.0]


def test_one_sample_goes_to_an_idle_worker_at_once_and_many_travel_together(new_scorer, monkeypatch):
    sent, send = [], WorkerProcess.send

    def noting(self, message):
        sent.append([index for index, _ in message.get("calls", [])])
        send(self, message)

    scorer = new_scorer("length_of", workers=1)
    with scorer.open(100) as scoring:
        scoring.add(texts("x", "xx"))
        started(scorer, scoring)
        monkeypatch.setattr(WorkerProcess, "send", noting)
        scoring.add(texts("x", start=2))
        assert sent == [[2]]
        scoring.add(texts(*["x"] * 97, start=3))
        assert [s.reward for s in scoring.finish()] == [1.0, 2.0] + [1.0] * 98
    assert sent == [[2], *([*range(n, min(n + 25, 100))] for n in (3, 28, 53, 78))]  # shares of a quarter


def test_a_hanging_call_is_ended_by_pumping_and_only_its_sample_is_lost(new_scorer):
    scorer = new_scorer("hangs", timeout_s=1.0, workers=1)
    with scorer.open(8) as scoring:
        scoring.add(texts("a", "hang"))
        started(scorer, scoring)  # again, after the one that hung was killed
        assert {i: v.outcome for i, v in scoring.verdicts[0].items()} == {0: "scored", 1: "timeout"}
        scoring.add(texts("bb", start=2))
        scores = scoring.finish()
    assert [(s.reward, s.outcome) for s in scores] == [(1.0, "scored"), (None, "timeout"), (2.0, "scored")]


def test_a_reply_in_time_counts_however_late_it_is_read(new_scorer):
    scorer = new_scorer("length_of", timeout_s=0.3, workers=1)
    with scorer.open(1) as scoring:
        scoring.add(texts("x"))
        until(lambda: scorer.workers[0].job, scoring)
        away_until_late(scorer)
        assert [s.reward for s in scoring.finish()] == [1.0]


def test_a_reply_too_long_for_the_pipe_is_not_late_because_nobody_reads(new_scorer):
    scorer = new_scorer("of_tokens", timeout_s=0.3, workers=1)
    with scorer.open(1) as scoring:
        scoring.add({0: Sample("p", "x", completion_tokens=400_000)})
        until(lambda: scorer.workers[0].job, scoring)
        away_until_late(scorer)
        assert [s.reward for s in scoring.finish()] == [200_000.0]


def test_a_call_too_long_for_the_pipe_is_not_late_because_nobody_writes(new_scorer):
    scorer = new_scorer("length_of", timeout_s=2.0, workers=1)
    with scorer.open(1) as scoring:
        scoring.add(texts("x" * 1_000_000))
        until(lambda: scorer.workers[0].job, scoring)
        time.sleep(max(0.0, scorer.workers[0].due - time.monotonic()) + 0.01)
        assert [s.reward for s in scoring.finish()] == [1_000_000.0]


def test_a_worker_that_its_own_timer_ended_because_nobody_looked_was_late_and_any_other_end_is_an_error(new_scorer):
    scores = new_scorer("ends").score(list(texts("ok", "SIGALRM", "SIGTERM").values()))
    assert [(s.reward, s.outcome) for s in scores] == [(1.0, "scored"), (None, "timeout"), (None, "error")]


def test_a_worker_killed_before_its_first_call_costs_the_sample_that_came_first(new_scorer):
    """It has not said which it is in; what its last job was in is not to be blamed."""
    scorer = new_scorer("length_of", workers=1)
    with scorer.open(16) as scoring:
        scoring.add(texts("a", "bb", "ccc"))
        started(scorer, scoring)
        (worker,) = scorer.workers
        os.kill(worker.process.pid, signal.SIGSTOP)  # so that the pipe does not take all of what comes
        scoring.add(texts("x" * 1_000_000, "yy", start=3))
        assert worker.outbox
        worker.process.kill()
        scores = scoring.finish()
    assert [(s.reward, s.outcome) for s in scores] == [
        (1.0, "scored"),
        (2.0, "scored"),
        (3.0, "scored"),
        (None, "error"),
        (2.0, "scored"),
    ]


def test_leaving_with_work_under_way_ends_the_workers_and_leaving_without_keeps_them(new_scorer):
    scorer = new_scorer("hangs")
    with pytest.raises(InterruptedError), scorer.open(1) as scoring:
        scoring.add(texts("hang"))
        until(lambda: scorer.workers[0].job, scoring)
        raise InterruptedError
    assert scorer.workers == []
    with scorer.open(1) as scoring:
        scoring.add(texts("abc"))
        assert scoring.finish()[0].reward == 3.0
    (idle_worker,) = scorer.workers
    with pytest.raises(InterruptedError), scorer.open(1):
        raise InterruptedError
    assert scorer.workers == [idle_worker]


def test_what_would_mix_samples_up_is_refused(new_scorer):
    scorer = new_scorer("length_of")
    with scorer.open(2) as scoring:
        with pytest.raises(ValueError, match="at work on other samples"):
            scorer.open(1)
        scoring.add(texts("x"))
        with pytest.raises(ValueError, match="sample 0 was added before"):
            scoring.add(texts("y"))
        assert [s.reward for s in scoring.finish()] == [1.0]
    assert scorer.score([Sample("p", "xx")])[0].reward == 2.0


def test_nothing_added_is_nothing_scored_and_starts_no_process(new_scorer):
    scorer = new_scorer("length_of", "places")
    with scorer.open(0) as scoring:
        scoring.pump()
        assert scoring.finish() == []
    assert scorer.score([]) == [] and scorer.workers == []
