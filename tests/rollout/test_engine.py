"""Engines are found by name or path, and the scripted one plays what it is given."""

import math

import pytest
import torch

from rlhf_pg.rollout.engine import resolve
from rlhf_pg.rollout.native import NativeEngine
from rlhf_pg.rollout.scripted import ScriptedEngine
from rlhf_pg.types import Prompt, Sampling

A, B = Prompt("a", "", (1, 2)), Prompt("b", "", (3,))


def test_engines_are_found_by_shipped_name_and_by_dotted_path():
    assert resolve("native") is NativeEngine and resolve("scripted") is ScriptedEngine
    assert resolve("rlhf_pg.rollout.scripted:ScriptedEngine") is ScriptedEngine


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("natve", "did you mean 'native'"),
        ("no_such_module:Engine", "no_such_module"),
        ("rlhf_pg.rollout.native:NoEngine", "NoEngine"),
        ("rlhf_pg.rollout.scheduler:PREFILL_TOKENS", "is a int"),
    ],
)
def test_a_wrong_engine_name_says_what_is_wrong(name, message):
    with pytest.raises(ValueError, match=message):
        resolve(name)


def test_a_script_is_played_in_order_and_around():
    engine = ScriptedEngine({"a": [[5, 6, 0], [7, 8, 9, 9]], "b": [[0]]}, eos_ids=[0], vocabulary=8, version=3)
    (a0, a1, a2), b = engine.generate([A, B], Sampling(3, 3))
    assert [c.tokens.tolist() for c in (a0, a1, a2, *b)] == [[5, 6, 0], [7, 8, 9], [5, 6, 0], [0], [0], [0]]
    assert [c.finish for c in (a0, a1, b[0])] == ["stop", "length", "stop"]
    assert a0.tokens.dtype == torch.int64 and a0.version == 3
    assert a0.logp.tolist() == pytest.approx([-math.log(8)] * 3)
    assert engine.generate([A], Sampling(1, 2))[0][0].finish == "length"  # cut before its EOS


def test_a_script_may_give_log_probs_and_reports_progress():
    engine = ScriptedEngine({"a": [[5, 0]], "b": [[5]]}, [0], logp={"a": [[-1.5, -0.5]], "b": [[-2.0]]})
    seen, given = [], []
    groups = engine.generate(
        [A, B], Sampling(2, 4), lambda *place: seen.append(place), lambda p, j, c: given.append((p, j, c, len(seen)))
    )
    assert groups[0][1].logp.tolist() == [-1.5, -0.5] and groups[1][0].logp.tolist() == [-2.0]
    assert seen == [(2, 4, 4), (4, 4, 6)]
    assert given == [(p, j, groups[p][j], p) for p in (0, 1) for j in (0, 1)]  # a prompt's own before its progress


def test_a_script_keeps_weights_and_refuses_what_it_does_not_have():
    engine = ScriptedEngine({"a": [[5, 0, 1]]}, [0])
    engine.load_weights([("w", torch.ones(2))], version=4)
    assert engine.version == 4 and engine.loaded["w"].tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"\['b'\]"):
        engine.generate([A, B], Sampling(1, 4))
    with pytest.raises(ValueError, match="after an EOS"):
        engine.generate([A], Sampling(1, 4))
    with pytest.raises(ValueError, match="no prompts"):
        engine.generate([], Sampling(1, 4))
