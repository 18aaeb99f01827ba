"""The memory a reward function may take: a recipe key, and named by the message of a function that wanted more."""

import pytest

from rlhf_pg.errors import RunError
from rlhf_pg.rewards import plugin
from rlhf_pg.rewards.score import Scorer
from rlhf_pg.types import Sample

SOURCE = """
import os
def eat(completion): return float(len(bytearray(int(completion) << 20)) >> 20)
def small(completion): return 1.0
def dies(completion): os.abort()
def setup(): global KEPT; KEPT = bytearray(400 << 20)
def heavy(completion): return 1.0
heavy.setup = setup
def says(completion): raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 8 GB")
"""


@pytest.fixture
def scores(tmp_path):
    (tmp_path / "mine.py").write_text(SOURCE)

    def run(completions, **limits):
        rewards = [
            plugin.resolve(f"{tmp_path / 'mine.py'}:{name}", memory_mb=mb, option=f"rewards.{i}.{{}}")
            for i, (name, mb) in enumerate(limits.items())
        ]
        with Scorer(rewards, workers=1) as scorer:
            return scorer.score([Sample("p", c) for c in completions])

    return run


def test_the_limit_is_the_functions_own_and_its_message_names_the_key(scores):
    found = scores(["100", "500", "100"], small=1024, eat=256)
    assert [s.parts["eat"] for s in found] == [100.0, None, 100.0]
    assert [s.parts["small"] for s in found] == [1.0] * 3
    assert "MemoryError" in found[1].detail
    assert "it may take 256 MB; raise rewards.1.memory_mb" in found[1].detail
    assert [s.reward for s in scores(["500"], eat=1024)] == [500.0]


@pytest.mark.parametrize(("name", "why"), [("dies", "SIGABRT"), ("says", "can't allocate memory")])
def test_a_library_that_gets_no_memory_is_told_of_the_key_too(scores, name, why):
    with pytest.raises(RunError, match=rf"{why}.*raise rewards.0.memory_mb"):
        scores(["1"], **{name: 256})


def test_a_setup_that_gets_no_memory_names_function_and_key(scores):
    with pytest.raises(RunError, match=r"mine.py:heavy' cannot be loaded.*MemoryError.*raise rewards.1.memory_mb"):
        scores(["1"], small=1024, heavy=256)
    assert [s.reward for s in scores(["1"], small=256, heavy=1024)] == [2.0]
