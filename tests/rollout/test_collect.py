"""Rollouts: what reward functions are shown, and that they work while the engine still generates."""

import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rlhf_pg.models.tokenizer import character_tokenizer
from rlhf_pg.rewards import plugin
from rlhf_pg.rewards.plugin import Reward
from rlhf_pg.rewards.score import Scorer
from rlhf_pg.rollout import collect
from rlhf_pg.rollout.scripted import ScriptedEngine
from rlhf_pg.types import Prompt, Sample, Sampling, Score

TOKENIZER = character_tokenizer()
EOS = 1
A, B = Prompt("a", "1+1=", (4, 5), {"answer": "2"}), Prompt("b", "1+2=", (4, 6), {"answer": "3"})
TWO = Sampling(samples=2, max_new_tokens=9)


def line(text: str) -> list[int]:
    """Its tokens; a text ending in "." has an EOS in that place."""
    ids = TOKENIZER(text.removesuffix(".")).input_ids
    return [*ids, EOS] if text.endswith(".") else ids


def script(**texts: list[str]) -> dict[str, list[list[int]]]:
    return {prompt: [line(text) for text in given] for prompt, given in texts.items()}


# ---- what is shown of a completion


@dataclass
class Watched:
    """A scorer and a tokenizer that note what they are given."""

    rewards: list[Reward]
    samples: dict[int, Sample] = field(default_factory=dict)
    decoded: list[list[int]] = field(default_factory=list)
    eos_token_id: int = EOS
    pad_token_id: int = 0

    def open(self, count):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def add(self, samples):
        self.samples |= samples

    def pump(self):
        pass

    def finish(self, poll):
        return [Score(float(n), {}, "scored") for n in range(len(self.samples))]

    def decode(self, ids, **how):
        self.decoded.append(list(ids))
        return TOKENIZER.decode(ids, **how)


def collected(engine_type: Any = ScriptedEngine, **asked: Any):
    """Two completions, scored by a function that names `completion` and by one with the arguments of `asked`."""
    watched: Any = Watched(
        [Reward("plain", "", "", "", arguments=("completion",)), Reward("other", "", "", "", **asked)]
    )
    engine = engine_type(script(a=["2 .", "abc"]), [EOS])
    return watched, collect.rollouts(engine, watched, watched, [A], TWO)


@pytest.mark.parametrize("asked", [{}, {"arguments": ("completion_tokens", "max_new_tokens")}, {"takes_rest": True}])
def test_without_a_wish_for_the_texts_of_tokens_a_completion_is_decoded_once(asked):
    watched, rollouts = collected(**asked)
    assert [r.completion.tokens.tolist() for r in rollouts] == [line("2 ."), line("abc")]
    assert watched.decoded == [line("2 "), line("abc")]  # without EOS
    assert watched.samples == {
        0: Sample("1+1=", "2 ", "stop", {"answer": "2"}, (), 9, 3),
        1: Sample("1+1=", "abc", "length", {"answer": "2"}, (), 9, 3),
    }


@pytest.mark.parametrize("kind", ["arguments", "optional"])
def test_a_function_that_asks_gets_the_text_of_each_token(kind):
    watched, _ = collected(**{kind: ("token_texts",)})
    assert [s.token_texts for s in watched.samples.values()] == [("2", " ", ""), ("a", "b", "c")]
    assert [(s.completion_tokens, s.max_new_tokens) for s in watched.samples.values()] == [(3, 9), (3, 9)]


class Backwards(ScriptedEngine):
    """Learns of all completions together, and hands them out from the last to the first."""

    def generate(self, prompts, sampling, progress=None, finished=None):
        groups = super().generate(prompts, sampling, progress)
        for place in reversed([(p, j) for p in range(len(groups)) for j in range(sampling.samples)]):
            finished(*place, groups[place[0]][place[1]])  # pyright: ignore[reportOptionalCall]
        return groups


@pytest.mark.parametrize("engine_type", [ScriptedEngine, Backwards])
def test_scores_stay_with_their_completions(engine_type):
    _, rollouts = collected(engine_type)
    assert [(r.prompt, r.text, r.score.reward) for r in rollouts] == [(A, "2 ", 0.0), (A, "abc", 1.0)]
    assert [r.completion.tokens.tolist() for r in rollouts] == [line("2 ."), line("abc")]


def test_an_engine_that_keeps_a_completion_back_is_refused():
    class Keeps(ScriptedEngine):
        def generate(self, prompts, sampling, progress=None, finished=None):
            groups = super().generate(prompts, sampling, progress)
            finished(0, 1, groups[0][1])  # pyright: ignore[reportOptionalCall]
            return groups

    with pytest.raises(ValueError, match="called `finished` for 1 of 2 completions"):
        collected(Keeps)


# ---- scoring while others are generated

REWARDS = """
import os, pathlib, time
HERE = pathlib.Path(__file__).parent

def note(name, text=""):
    part = HERE / f"part {os.getpid()}"  # two workers write notes at once
    part.write_text(text)
    part.rename(HERE / name)  # never seen half written

def slow(completion):
    note(f"began {completion}")
    while not (HERE / "generated").exists():
        time.sleep(0.01)
    return len(completion)

def hangs(completion):
    if completion == "x":
        note("process", str(os.getpid()))
        time.sleep(600)
    return len(completion)

def of_all(completions):
    assert (HERE / "generated").exists()
    return [10 * n + len(c) for n, c in enumerate(completions)]
"""


@dataclass
class World:
    """Reward functions that leave notes, and a scripted engine that does something after its first prompt."""

    folder: Path

    def scorer(self, *names: str, timeout_s: float = 60.0) -> Scorer:
        return Scorer([plugin.resolve(f"{self.folder}/noting.py:{name}", timeout_s=timeout_s) for name in names])

    def collect(self, scorer: Scorer, after_first, **options: Any):
        """Rollouts of two prompts; `after_first(between_steps)` is called when those of the first are finished."""
        world = self

        class Engine(ScriptedEngine):
            def generate(self, prompts, sampling, progress=None, finished=None):
                def then(*place):
                    progress(*place)  # pyright: ignore[reportOptionalCall]
                    if place[0] < place[1]:
                        after_first(lambda: progress(*place))  # pyright: ignore[reportOptionalCall]

                groups = super().generate(prompts, sampling, then, finished)
                (world.folder / "generated").touch()
                return groups

        engine = Engine(script(a=["x.", "yy."], b=["zzz.", "wwww."]), [EOS])
        return collect.rollouts(engine, scorer, TOKENIZER, [A, B], TWO, **options)

    def await_(self, condition, between_steps=lambda: None) -> None:
        """Steps until the condition holds; a minute is far more than any needs."""
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, "did not happen while the engine was still generating"
            between_steps()
            time.sleep(0.01)

    def has(self, name: str) -> bool:
        return (self.folder / name).exists()

    def hanging(self) -> bool:
        """Whether the process that began to hang is still there."""
        return Path(f"/proc/{(self.folder / 'process').read_text()}").exists()


@pytest.fixture
def world(tmp_path: Path) -> World:
    (tmp_path / "noting.py").write_text(REWARDS)
    return World(tmp_path)


def test_reward_functions_of_one_sample_work_while_the_engine_generates_and_those_of_a_batch_get_it_whole(world):
    def after_first(between_steps):
        world.await_(lambda: world.has("began x") and world.has("began yy"), between_steps)
        assert not world.has("began zzz") and not world.has("began wwww")

    with world.scorer("slow", "of_all") as scorer:
        rollouts = world.collect(scorer, after_first)
    assert [(r.prompt, r.text) for r in rollouts] == [(A, "x"), (A, "yy"), (B, "zzz"), (B, "wwww")]
    assert [r.score.parts for r in rollouts] == [
        {"slow": float(n + 1), "of_all": float(10 * n + n + 1)} for n in range(4)
    ]


def test_generating_is_one_part_and_waiting_for_rewards_the_next(world):
    said = []

    @contextmanager
    def part(name):
        said.append(name)
        yield
        said.append(f"{name} over")

    with world.scorer("slow") as scorer:
        world.collect(scorer, lambda _: said.append("generating"), poll=lambda: said.append("poll"), part=part)
    assert said[:4] == ["rollout", "generating", "rollout over", "reward"]
    assert said[-1] == "reward over" and set(said[4:-1]) == {"poll"}


def test_a_function_that_hangs_is_killed_while_the_engine_generates_and_costs_only_its_sample(world):
    def after_first(between_steps):
        world.await_(lambda: world.has("process"), between_steps)
        world.await_(lambda: not world.hanging(), between_steps)

    with world.scorer("hangs", timeout_s=2.0) as scorer:
        rollouts = world.collect(scorer, after_first)
    assert [(r.score.reward, r.score.outcome) for r in rollouts] == [
        (None, "timeout"),
        (2.0, "scored"),
        (3.0, "scored"),
        (4.0, "scored"),
    ]
    assert "hangs, sample 0: no answer within 2 s" in rollouts[0].score.detail


def test_leaving_while_the_engine_generates_ends_the_workers_and_the_scorer_can_be_used_again(world):
    def after_first(between_steps):
        world.await_(lambda: world.has("process"), between_steps)
        raise InterruptedError

    with world.scorer("hangs") as scorer:
        with pytest.raises(InterruptedError):
            world.collect(scorer, after_first)
        assert scorer.workers == [] and not world.hanging()
        assert [s.reward for s in scorer.score([Sample("p", "abc")])] == [3.0]


def test_leaving_while_waiting_for_rewards_ends_the_workers(world):
    def leave():
        raise InterruptedError

    with world.scorer("hangs") as scorer:
        with pytest.raises(InterruptedError):
            world.collect(scorer, lambda step: world.await_(lambda: world.has("process"), step), poll=leave)
        assert scorer.workers == [] and not world.hanging()
