"""The engine in a second process keeps the contract, samples from the weights of the moment, and never outlives us."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_pg.config import Lora
from rlhf_pg.models.adapter import add_adapter
from rlhf_pg.rollout import launch_local
from rlhf_pg.rollout.engine import RolloutRequest
from rlhf_pg.rollout.engine_client import EngineClient
from rlhf_pg.rollout.launch_local import LocalWorker, local_engine
from rlhf_pg.rollout.native import NativeEngine
from rlhf_pg.types import Prompt
from tests.random_models import random_model
from tests.rollout.borrowed import Borrowed, assert_sampled_from, nudge
from tests.rollout.contract import EOS, SAMPLING, EngineContract, ragged_prompts, tokens_of
from tests.thread_engine import spawn_thread


class TestLocalEngine(EngineContract):
    engines: dict[Any, EngineClient]

    @pytest.fixture(autouse=True, scope="class")
    def kept(self, request):
        request.cls.engines = engines = {}
        yield
        for engine in engines.values():
            engine.close()

    def build(self, model, eos_ids):
        key = (type(model), model.config.vocab_size)
        if key not in self.engines:
            self.engines[key] = local_engine("native", model, eos_ids)
        return Borrowed(self.engines[key], model)


@pytest.fixture
def threaded(monkeypatch):
    """An engine, its model, and the same model again to compare with."""
    monkeypatch.setattr(launch_local, "spawn", spawn_thread)
    engine = local_engine("native", random_model(), EOS)
    yield engine, engine.model, random_model()
    engine.close()


def test_what_was_started_is_sampled_from_the_weights_of_that_moment_and_their_version(threaded):
    engine, model, before = threaded
    prompts = ragged_prompts()
    engine.load_weights((), version=3)
    engine.start(prompts, SAMPLING)
    nudge(model)
    engine.load_weights((), version=4)
    groups = engine.generate(prompts, SAMPLING)
    assert {c.version for group in groups for c in group} == {3}
    assert_sampled_from(before, prompts, groups)
    again = engine.generate(prompts, SAMPLING)
    assert {c.version for group in again for c in group} == {4}
    assert_sampled_from(model, prompts, again)


def test_something_else_may_be_generated_meanwhile_from_the_weights_of_now(threaded):
    engine, model, before = threaded
    prompts, other = ragged_prompts(), replace(SAMPLING, step=9)
    engine.start(prompts, SAMPLING)
    nudge(model)
    assert_sampled_from(model, prompts, engine.generate(prompts, other))
    assert_sampled_from(before, prompts, engine.generate(prompts, SAMPLING))


def test_waiting_may_be_left_and_what_was_started_goes_on(threaded):
    engine, _, before = threaded
    prompts = ragged_prompts()

    def leave(*_):
        raise InterruptedError

    expected = NativeEngine(before, EOS).generate(prompts, SAMPLING)
    engine.start(prompts, SAMPLING)
    with pytest.raises(InterruptedError):
        engine.generate(prompts, SAMPLING, leave)
    assert tokens_of(engine.generate(prompts, SAMPLING)) == tokens_of(expected)


def test_rows_of_what_was_started_are_handed_out_while_others_are_sampled(threaded):
    engine, _, _ = threaded
    prompts, long = ragged_prompts(), replace(SAMPLING, samples=100, max_new_tokens=100)
    early, seen = 0, set()

    def finished(prompt, place, _):
        nonlocal early
        early += engine._awaited  # the answer, with all rows, has not come
        assert (prompt, place) not in seen
        seen.add((prompt, place))

    engine.start(prompts, long)
    engine.generate(prompts, long, finished=finished)
    assert early and len(seen) == 600


def test_what_is_put_back_replaces_what_is_being_sampled(threaded):
    engine, _, before = threaded
    prompts, long = ragged_prompts(), replace(SAMPLING, samples=50, step=7)
    first = engine.generate(prompts, SAMPLING)
    engine.start(prompts, long)
    earlier = RolloutRequest(prompts, SAMPLING, 0, first)
    engine.put_back(earlier)
    assert engine.look() is earlier
    assert engine.generate(prompts, SAMPLING) is first and engine.started is None
    assert_sampled_from(before, prompts, engine.generate(prompts, SAMPLING))


def test_twice_started_is_refused_and_a_wrong_request_is_refused_where_it_is_generated(threaded):
    engine, _, _ = threaded
    with pytest.raises(ValueError, match="no prompts"):
        engine.start([], SAMPLING)
    prompts = [Prompt("x", "", (99,))]
    engine.start(prompts, SAMPLING)
    with pytest.raises(RuntimeError, match="already started"):
        engine.start(ragged_prompts(), SAMPLING)
    with pytest.raises(ValueError, match="outside the model's vocabulary"):
        engine.generate(prompts, SAMPLING)


def test_an_engine_with_a_copy_of_its_own_is_given_the_new_weights(monkeypatch):
    monkeypatch.setattr(launch_local, "spawn", spawn_thread)
    model, prompts = random_model(), ragged_prompts()
    engine = local_engine("tests.rollout.borrowed:CopyingEngine", model, EOS)
    for version in (1, 2):
        nudge(model)
        engine.load_weights((), version)
        assert_sampled_from(model, prompts, engine.generate(prompts, SAMPLING))
    engine.close()


def test_only_an_adapter_travels_and_it_arrives(monkeypatch):
    monkeypatch.setattr(launch_local, "spawn", spawn_thread)
    model = add_adapter(random_model(), Lora(rank=2), seed=1)
    engine, prompts = local_engine("native", model, EOS), ragged_prompts()
    nudge(model)
    engine.start(prompts, SAMPLING)
    assert engine.started is not None
    weights = engine.started.weights
    assert_sampled_from(model, prompts, engine.generate(prompts, SAMPLING))
    assert all("lora_" in name for name in weights) and weights
    engine.close()


def test_bfloat16_arithmetic_of_the_caller_is_that_of_the_process(threaded):
    engine, _, before = threaded
    prompts = ragged_prompts()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = engine.generate(prompts, SAMPLING)
        expected = NativeEngine(before, EOS).generate(prompts, SAMPLING)
    assert tokens_of(found) == tokens_of(expected)
    assert all(
        torch.equal(a.logp, b.logp) for g, h in zip(found, expected, strict=True) for a, b in zip(g, h, strict=True)
    )


def test_the_threads_are_shared_out_until_it_is_closed():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(5)
        engine = local_engine("native", random_model(), EOS)
        assert torch.get_num_threads() == 3
        engine.close()
        assert torch.get_num_threads() == 5
    finally:
        torch.set_num_threads(before)


def test_the_end_of_the_process_is_told_with_its_last_words():
    engine = local_engine("native", random_model(), EOS)
    assert isinstance(engine.worker, LocalWorker)
    engine.worker.process.kill()
    with pytest.raises(RuntimeError, match="the rollout process ended with SIGKILL"):
        engine.generate(ragged_prompts(), SAMPLING)
    engine.close()
    broken = local_engine("no.such:Engine", random_model(), EOS)
    with pytest.raises(
        RuntimeError, match=r"exit status 1: ValueError: rollout engine 'no\.such:Engine' cannot be loaded"
    ):
        broken.generate(ragged_prompts(), SAMPLING)
    broken.close()


PARENT = """
import time
from rlhf_pg.rollout.launch_local import local_engine
from rlhf_pg.types import Sampling
from tests.random_models import random_model
from tests.rollout.contract import ragged_prompts
engine = local_engine("native", random_model(), [22], slots=2000)
engine.start(ragged_prompts(), Sampling(samples=100_000, max_new_tokens=100))
def report(done, rows, tokens):
    if tokens:
        print(engine.worker.process.pid, flush=True)
        time.sleep(600)
engine.collect(report)
"""


def test_it_does_not_outlive_a_parent_that_is_killed_while_it_samples():
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    os.kill(child, 0)  # it is there
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 60
    while _alive(child):
        assert time.monotonic() < deadline, "the rollout process is still there a minute after its parent"
        time.sleep(0.05)


def _alive(pid):
    try:
        return "(zombie)" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
