"""An engine behind a socket keeps the contract; what goes wrong on the way is mended, or stops, and is never used."""

from __future__ import annotations

import json
import socket
import stat
import threading
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_pg.config import Lora
from rlhf_pg.errors import RunError
from rlhf_pg.models.adapter import add_adapter
from rlhf_pg.rollout import launch_server, protocol
from rlhf_pg.rollout.launch_server import Address, served_engine
from rlhf_pg.rollout.native import NativeEngine
from rlhf_pg.types import Completion
from tests.random_models import random_model
from tests.rollout.borrowed import assert_sampled_from, nudge
from tests.rollout.contract import EOS, SAMPLING, EngineContract, ragged_prompts, tokens_of


class ThreadedServer:
    """A server of a model's copy in a thread: the same code and socket as `rlhf-pg serve`."""

    def __init__(self, model, file: Path, eos_ids=EOS, make: Any = NativeEngine):
        self.model, self.said = model, list[str]()
        self.engine = make(model, eos_ids)
        self.listening, self.address = launch_server.listen("127.0.0.1", 0)
        self.address.write(file)
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self):
        try:
            launch_server.serve(self.engine, self.model, self.listening, self.address, self.said.append)
        except Exception as error:  # of the engine, or the socket that `stop` closed
            self.said.append(f"ended: {error}")
        finally:
            self.listening.close()

    def stop(self):
        with socket.socket() as waker:  # accept() does not return when its socket is closed
            self.listening.close()
            waker.settimeout(1)
            with suppress(OSError):
                waker.connect((self.address.host, self.address.port))


class TestServedEngine(EngineContract):
    @pytest.fixture(autouse=True)
    def files(self, tmp_path):
        self.folder, self.servers = tmp_path, []
        yield
        for server in self.servers:
            server.stop()

    def build(self, model, eos_ids):
        file = self.folder / f"{len(self.servers)}.json"
        copy = random_model(model.config.model_type, vocabulary=model.config.vocab_size)
        self.servers.append(ThreadedServer(copy, file, eos_ids))
        return served_engine(model, eos_ids, file, timeout_s=20)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "serve.json"


@pytest.fixture
def engine(file):
    engine = served_engine(random_model(), EOS, file, timeout_s=20)
    yield engine
    engine.close()


def test_only_the_owner_may_read_the_token_and_only_this_machine_may_connect(file):
    server = ThreadedServer(random_model(), file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert json.loads(file.read_text())["host"] == "127.0.0.1" == server.listening.getsockname()[0]


def test_whoever_does_not_know_the_token_is_refused_and_the_trainer_is_served_after_that(file, engine):
    server = ThreadedServer(random_model(), file)
    with pytest.raises((OSError, EOFError)):
        replace(server.address, token="00" * 32).connect(5)
    with socket.create_connection((server.address.host, server.address.port)) as noise:
        noise.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3)
    assert len(engine.generate(ragged_prompts(), SAMPLING)) == 6
    assert sum(text.startswith("refused 127.0.0.1") for text in server.said) == 2


def test_a_trainer_refuses_a_server_that_does_not_know_the_token():
    listening = socket.create_server(("127.0.0.1", 0))
    address = Address("127.0.0.1", listening.getsockname()[1], "11" * 32)

    def pretend():
        client, _ = listening.accept()
        connection = Connection(client.detach())
        connection.send_bytes(b"#CHALLENGE#" + b"\0" * 20)
        connection.recv_bytes()
        connection.send_bytes(b"#WELCOME#")
        question = connection.recv_bytes()
        connection.send_bytes(question.removeprefix(b"#CHALLENGE#"))
        connection.recv_bytes()

    threading.Thread(target=pretend, daemon=True).start()
    with pytest.raises(ConnectionRefusedError, match="does not know the token"):
        address.connect(5)
    listening.close()


def test_only_an_adapter_travels_and_it_arrives(file, monkeypatch):
    sent = []
    original = protocol.send
    monkeypatch.setattr(protocol, "send", lambda c, h, t: (sent.append((h, t)), original(c, h, t))[1])
    ThreadedServer(add_adapter(random_model(), Lora(rank=2), seed=1), file)
    model = add_adapter(random_model(), Lora(rank=2), seed=1)
    engine, prompts = served_engine(model, EOS, file, timeout_s=20), ragged_prompts()
    nudge(model)
    engine.load_weights((), version=1)
    assert_sampled_from(model, prompts, engine.generate(prompts, SAMPLING))
    names = [name for header, tensors in sent if header.get("do") == "weights" for name in tensors]
    assert names and all("lora_" in name for name in names)
    engine.close()


def test_a_server_that_was_started_again_gets_the_weights_and_the_request_again(file, engine):
    prompts = ragged_prompts()
    first = ThreadedServer(random_model(), file)
    nudge(engine.model)
    engine.load_weights((), version=4)
    engine.generate(prompts, SAMPLING)
    breaking = True

    def leave(self, done, *_):
        nonlocal breaking
        if breaking:
            breaking = False
            raise RuntimeError("out of memory")

    first.engine.generate = lambda p, s, progress, finished: leave(None, 0)
    restarted = threading.Timer(0.5, lambda: ThreadedServer(random_model(), file))
    restarted.start()
    groups = engine.generate(prompts, SAMPLING)
    assert {c.version for group in groups for c in group} == {4}
    assert_sampled_from(engine.model, prompts, groups)


class Faulty(NativeEngine):
    """Spoils its first answer to six prompts in a way of the test's choosing."""

    spoil: Any = None

    def generate(self, prompts, sampling, progress=None, finished=None):
        groups = super().generate(prompts, sampling)
        if len(prompts) == 6 and self.spoil:
            spoil, self.spoil = self.spoil, None
            groups = spoil(groups)
        for n, group in enumerate(groups):
            for j, row in enumerate(group):
                if finished and row is not None:
                    finished(n, j, row)
        return groups


def changed(**changes):
    def spoil(groups):
        row = groups[3][1]
        new = {k: v(row) if callable(v) else v for k, v in changes.items()}
        groups[3][1] = replace(row, **new)
        return groups

    return spoil


def short(groups):
    groups[5][3] = None
    return groups


@pytest.mark.parametrize(
    "spoil",
    [
        short,
        changed(version=7),
        changed(tokens=lambda row: torch.full_like(row.tokens, 99)),
        changed(tokens=lambda row: row.tokens[:-1], logp=lambda row: row.logp[:-1], finish="length"),
        changed(logp=lambda row: row.logp.fill_(float("nan"))),
        changed(logp=lambda row: row.logp.fill_(1.0)),
    ],
    ids=["short", "stale row", "vocabulary", "cut", "nan", "positive"],
)
def test_a_wrong_answer_is_asked_for_again_and_never_returned(file, engine, spoil):
    prompts, handed = ragged_prompts(), dict[tuple[int, int], Completion]()
    server = ThreadedServer(random_model(), file, make=Faulty)
    expected = NativeEngine(random_model(), EOS).generate(prompts, SAMPLING)
    server.engine.spoil = spoil

    def finished(prompt, place, row):
        assert (prompt, place) not in handed
        handed[prompt, place] = row

    groups = engine.generate(prompts, SAMPLING, finished=finished)
    assert server.engine.spoil is None
    assert tokens_of(groups) == tokens_of(expected) and {c.version for group in groups for c in group} == {0}
    assert all(handed[n, j] is groups[n][j] for n in range(6) for j in range(4))


def test_weights_of_another_version_at_the_server_are_pushed_again(file, engine):
    server = ThreadedServer(random_model(), file)
    engine.generate(ragged_prompts(), SAMPLING)
    nudge(server.model)
    server.engine.version = 9
    groups = engine.generate(ragged_prompts(), SAMPLING)
    assert {c.version for group in groups for c in group} == {0} and server.engine.version == 0
    assert_sampled_from(engine.model, ragged_prompts(), groups)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocabulary": 29}, "the engine's model has 29 tokens, the trainer's 23"),
        ({"hidden_size": 16}, r"weight '.*' is \[23, 16\], but \[23, 32\] was given"),
    ],
)
def test_a_server_of_another_model_is_refused_at_once(file, engine, changes, message):
    ThreadedServer(random_model(**changes), file)
    with pytest.raises(ValueError, match=message):
        engine.generate(ragged_prompts(), SAMPLING)


def test_weights_that_do_not_arrive_are_noticed_by_their_log_probs(file, engine):
    server = ThreadedServer(random_model(), file)
    engine.generate(ragged_prompts(), SAMPLING)
    server.engine.load_weights = lambda tensors, version: setattr(server.engine, "version", version)
    nudge(engine.model, 0.01)
    with pytest.raises(
        RuntimeError, match=r"version 1 did not reach the rollout engine.* differ from the trainer's by"
    ):
        engine.load_weights((), version=1)


def test_a_server_that_keeps_failing_ends_in_an_error_that_says_how(file):
    engine = served_engine(random_model(), EOS, file, timeout_s=0.3)
    with pytest.raises(RunError, match=r"failed 3 times: no server there after 0.3 s"):
        engine.generate(ragged_prompts(), SAMPLING)
    silent = socket.create_server(("127.0.0.1", 0))
    Address("127.0.0.1", silent.getsockname()[1], "11" * 32).write(file)
    with pytest.raises(RunError, match=r"serve\.json failed 3 times"):
        engine.generate(ragged_prompts(), SAMPLING)
    silent.close()


def test_an_engine_that_hangs_is_left_after_the_deadline(file):
    engine = served_engine(random_model(), EOS, file, timeout_s=0.5)
    server = ThreadedServer(random_model(), file)
    engine.load_weights((), version=0)
    stuck = threading.Event()
    server.engine.generate = lambda *_: stuck.wait(30)
    with pytest.raises(RunError, match=r"nothing came for 0.5 s"):
        engine.generate(ragged_prompts(), SAMPLING)
    stuck.set()
