"""The worker pool: what comes back when a reward function answers, fails, hangs or dies."""

import os
import time
from pathlib import Path

import pytest

from rlhf_pg.rewards import plugin
from rlhf_pg.rewards.score import Scorer
from rlhf_pg.types import Sample

PLUGINS = """
import asyncio, os, time
COUNT = 0

def length_of(completion):
    return len(completion)

def misbehaves(completion):
    if completion == "raise":
        raise KeyError("no such thing")
    if completion == "hang":
        time.sleep(60)
    if completion == "spin":
        while True:
            pass
    if completion == "die":
        os._exit(3)
    if completion == "eat":
        return len(bytearray(8 << 30))
    values = {"nan": float("nan"), "inf": float("-inf"), "text": "1.0", "big": 10**400, "none": None, "list": [1.0],
              "true": True}
    return values.get(completion, 1.0)

def bounded(completion):
    time.sleep(60 if completion == "hang" else 0)
    return 1.0
bounded.on_limit = 0.0
bounded.limit_s = 0.4

def named_parts(completion):
    if completion == "whole":
        return {"reward": 0.25, "correct": 1.0, "style": None}
    if completion == "cut":
        return {"reward": 0.0, "outcome": "truncated", "detail": "cut off"}
    return {"correct": 1.0, "style": 0.5}

def trl_style(prompts, completions, answer, **kwargs):
    assert kwargs["level"] == [1] * len(prompts)
    return [float(c == a) for c, a in zip(completions, answer)]

def too_few(completions):
    return [1.0] * (len(completions) - 1)

async def patient(completion):
    await asyncio.sleep(30 if completion == "hang" else 0.2)
    if completion == "raise":
        raise OSError("judge is down")
    return float(len(completion))

async def blocks(completion):
    if completion == "hang":
        time.sleep(60)
    return 1.0

def remembers_process(completion):
    global COUNT
    COUNT += 1
    print("a message that must not reach the protocol", flush=True)
    return os.getpid()

def starts_child(completion):
    import subprocess
    child = subprocess.Popen(["sleep", "300"])
    with open(completion, "w") as f:
        f.write(str(child.pid))
    time.sleep(60)
"""


@pytest.fixture
def score(tmp_path: Path):
    """score(names, completions, ...) -> list[Score], with the functions above."""
    path = tmp_path / "mine.py"
    path.write_text(PLUGINS)
    opened = []

    def run(names: str, completions: list[str], timeout_s: float = 5.0, columns=None, workers: int = 2):
        rewards = [plugin.resolve(f"{path}:{name}", timeout_s=timeout_s) for name in names.split()]
        opened.append(Scorer(rewards, workers=workers))
        return opened[-1].score([Sample("p", c, "stop", columns or {}) for c in completions])

    yield run
    for scorer in opened:
        scorer.close()


def test_scores_come_back_in_order_for_many_samples(score):
    scores = score("length_of", ["x" * (n % 37) for n in range(300)])
    assert [s.reward for s in scores] == [n % 37 for n in range(300)]


@pytest.mark.parametrize("bad", ["raise", "nan", "inf", "text", "big", "list", "die", "eat"])
def test_a_fault_excludes_its_sample_and_no_other(score, bad):
    scores = score("misbehaves", ["ok"] * 5 + [bad] + ["ok"] * 10)
    assert [s.reward for s in scores] == [1.0] * 5 + [None] + [1.0] * 10
    assert scores[5].outcome == "error"
    assert "misbehaves, sample 5" in scores[5].detail


@pytest.mark.parametrize("bad", ["hang", "spin"])
def test_a_hanging_function_loses_only_the_sample_it_hung_on(score, bad):
    start = time.monotonic()
    texts = ["ok"] * 5 + [bad] + ["ok"] * 4 + [bad] + ["ok"] * 5
    scores = score("misbehaves", texts, timeout_s=0.5, workers=1)
    assert [s.reward for s in scores] == [1.0 if t == "ok" else None for t in texts]
    assert scores[5].outcome == "timeout"
    assert "0.5 s" in scores[5].detail
    assert time.monotonic() - start < 10


def test_none_excludes_and_true_counts_as_one(score):
    scores = score("misbehaves", ["none", "true"])
    assert (scores[0].reward, scores[0].outcome) == (None, "excluded")
    assert (scores[1].reward, scores[1].outcome) == (1.0, "scored")


def test_a_function_may_make_exhaustion_the_completions_fault(score):
    scores = score("bounded", ["ok", "hang", "ok"])
    assert [s.reward for s in scores] == [1.0, 0.0, 1.0]
    assert scores[1].outcome == "timeout"


def test_when_every_sample_fails_training_stops_with_the_first_cause(score):
    with pytest.raises(RuntimeError, match=r"sample 0: .*mine\.py:10, .*KeyError: 'no such thing'"):
        score("misbehaves", ["raise"] * 4)


def test_named_parts_are_summed_unless_one_is_the_reward(score):
    scores = score("named_parts", ["parts", "whole", "cut"])
    assert scores[0].reward == 1.5
    assert scores[0].parts == {"named_parts": 1.5, "named_parts/correct": 1.0, "named_parts/style": 0.5}
    assert scores[1].reward == 0.25
    assert scores[1].parts == {"named_parts": 0.25, "named_parts/correct": 1.0, "named_parts/style": None}
    assert (scores[2].reward, scores[2].outcome) == (0.0, "truncated")
    assert "cut off" in scores[2].detail


def test_several_functions_add_up_by_weight(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(PLUGINS)
    rewards = [plugin.resolve(f"{path}:length_of", 2.0), plugin.resolve(f"{path}:named_parts", -3.0)]
    with Scorer(rewards) as scorer:
        (result,) = scorer.score([Sample("p", "abc")])
    assert result.reward == 2.0 * 3 - 3.0 * 1.5
    assert result.parts["length_of"] == 3.0


def test_a_batched_function_gets_lists_as_in_trl(score):
    scores = score("trl_style", ["a", "b", "c"], columns={"answer": "b", "level": 1})
    assert [s.reward for s in scores] == [0.0, 1.0, 0.0]


def test_a_list_of_the_wrong_length_is_an_error_by_name(score):
    with pytest.raises(RuntimeError, match="too_few, sample 0: returned 3 values for 4 samples"):
        score("too_few", ["x"] * 4)


def test_asynchronous_calls_run_together_and_time_out_alone(score):
    start = time.monotonic()
    scores = score("patient", ["ab"] * 6 + ["hang", "raise"], timeout_s=2.0, workers=1)
    assert [s.reward for s in scores] == [2.0] * 6 + [None, None]
    assert "judge is down" in scores[7].detail
    assert time.monotonic() - start < 6


def test_an_asynchronous_call_that_blocks_the_loop_is_found(score):
    scores = score("blocks", ["ok", "ok", "hang", "ok"], timeout_s=0.3, workers=1)
    assert [s.reward for s in scores] == [1.0, 1.0, None, 1.0]


def test_prints_do_not_disturb_and_nothing_runs_in_this_process(score):
    scores = score("remembers_process", ["x"] * 50)
    assert os.getpid() not in {s.reward for s in scores}
    assert len({s.reward for s in scores}) <= 2


def test_what_a_hanging_function_started_is_killed_too(score, tmp_path):
    note = tmp_path / "child"
    with pytest.raises(RuntimeError):
        score("starts_child", [str(note)], timeout_s=0.7)
    child = int(note.read_text())
    deadline = time.monotonic() + 5
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        status = Path(f"/proc/{child}/stat").read_text().split()[2]
        if status == "Z":
            break
        time.sleep(0.05)
    else:
        assert not Path(f"/proc/{child}").exists()


def test_text_that_is_no_unicode_gets_through(score):
    assert score("length_of", ["\ud800x"])[0].reward == 2


def test_a_plugin_that_cannot_be_loaded_in_the_worker_stops_at_once(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("import os\ndef f(completion): return 1.0\n")
    reward = plugin.resolve(f"{path}:f")
    path.write_text("raise OSError('gone')\n")
    with Scorer([reward]) as scorer, pytest.raises(RuntimeError, match="OSError: gone"):
        scorer.score([Sample("p", "c")])


def test_two_functions_of_one_name_are_refused():
    with pytest.raises(ValueError, match="called 'gsm8k'"):
        Scorer([plugin.resolve("gsm8k")] * 2)


def test_workers_start_without_torch(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("import sys\ndef f(completion): return float('torch' in sys.modules)\n")
    with Scorer([plugin.resolve(f"{path}:f")]) as scorer:
        assert scorer.score([Sample("p", "c")])[0].reward == 0.0
