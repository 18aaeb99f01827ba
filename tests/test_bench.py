"""scripts/bench.py: its arithmetic on numbers made by hand, how contenders take turns, and one small run of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import bench
from benchmarks import call, learn, matmul, summary
from benchmarks.models import make, mean_length, random_model
from benchmarks.race import Contender, Measured, Places
from benchmarks.shapes import M1, M31, SHAPES, SMALL, Model, Shape, shape_of, update_flops

ROOT = Path(__file__).parents[1]
FAKE = """
from pathlib import Path

def run(specification, port):
    def take(command):
        with Path(specification["file"]).open("a") as file:
            file.write(f"{specification['name']}{command['round']} ")
        if command["round"] == specification.get("breaks_at"):
            raise SystemExit("out of luck")
        return {"seconds": 10.0 * command["round"], "tokens": 5}

    port.serve(take)
"""


def entry(name: str, seconds: list[float], tokens: list[int], peak: float, imported: float = 100.0) -> summary.Entry:
    rounds = [{"seconds": s, "tokens": t, "rollout_s": s / 4} for s, t in zip(seconds, tokens, strict=True)]
    ready = {"imported_mb": imported, "loaded_mb": imported + 50, "threads": 2}
    return summary.entry(name, Measured(ready, {"": rounds}, peak))


def test_an_entry_has_medians_over_rounds_and_time_per_token():
    figures = entry("a", [3.0, 1.0, 2.0, 8.0], [100, 100, 50, 100], peak=400.0)
    assert figures["seconds"] == {"median": 2.5, "min": 1.0, "max": 8.0}
    assert figures["ms_per_token"] == {"median": 35.0, "min": 10.0, "max": 80.0}  # of 30, 10, 40, 80
    assert figures["tokens_per_s"]["max"] == 100.0
    assert (figures["peak_above_imports_mb"], figures["peak_above_loaded_mb"]) == (300.0, 250.0)


def test_ratios_are_of_time_per_token_and_best_takes_the_faster_peer_for_time_and_the_leaner_for_memory():
    ours = entry("rlhf_pg", [1.0], [100], peak=200.0)  # 10 ms a token, 100 above imports, 50 above loaded
    slow = entry("slow", [4.0], [100], peak=300.0)  # 40 ms, 200, 150
    big = entry("big", [1.5], [50], peak=800.0, imported=300.0)  # 30 ms, 500, 450
    ratios = summary.compare([ours, slow, big])
    assert ratios["others"]["slow"] == pytest.approx(
        {"time": 4.0, "memory": 1.5, "memory_above_imports": 2.0, "memory_above_loaded": 3.0, "rollout_s": 4.0}
    )
    assert ratios["others"]["big"] == pytest.approx(
        {"time": 3.0, "memory": 4.0, "memory_above_imports": 5.0, "memory_above_loaded": 9.0, "rollout_s": 3.0}
    )
    assert ratios["best"] == pytest.approx(
        {"time": 3.0, "memory": 1.5, "memory_above_imports": 2.0, "memory_above_loaded": 3.0, "rollout_s": 3.0}
    )


def test_without_peers_or_without_ourselves_there_is_no_ratio():
    assert summary.compare([entry("rlhf_pg", [1.0], [1], peak=200.0)])["best"] == {}
    assert summary.compare([entry("other", [1.0], [1], peak=200.0)])["others"] == {}


def test_the_share_outside_is_what_the_parts_leave_of_each_round():
    rounds = [{"seconds": 10.0, "a": 6.0, "b": 3.0}, {"seconds": 20.0, "a": 10.0, "b": 4.0}]  # 0.1 and 0.3
    assert summary.share_outside(rounds, ("a", "b")) == pytest.approx({"median": 0.2, "min": 0.1, "max": 0.3})


def test_rates_are_averaged_over_work_not_over_sizes():
    assert summary.harmonic_rate([30, 10], [10, 5]) == pytest.approx(40 / (3 + 2))


def test_useful_operations_of_an_update_are_those_of_a_count_token_by_token():
    model = Model(hidden=8, layers=3, intermediate=20, heads=4, kv_heads=2, vocabulary=50, tied=False)
    layer = 8 * 8 + 8 * 4 + 8 * 4 + 8 * 8 + 3 * 8 * 20  # multiply-adds of one token: q, k, v, o, MLP
    once = 0
    for _ in range(2):  # prompts
        for position in range(5):
            once += 3 * (layer + 2 * (position + 1) * 8)
        for _ in range(4):  # samples
            for t in range(6):
                once += 50 * 8  # the head, where token t is predicted
                if t < 5:  # the last token is not forwarded
                    once += 3 * (layer + 2 * (5 + t + 1) * 8)
    assert update_flops(Shape(model, prompts=2, samples=4, prompt=5, completion=6)) == 2 * 4 * once


@pytest.mark.parametrize("model", [SMALL, M1, M31])
def test_parameters_are_those_of_the_model_made(model: Model):
    built = random_model(model)
    assert model.parameters == sum(p.numel() for p in built.parameters())


def test_models_are_as_large_as_their_names_say():
    assert 0.95e6 < SHAPES["1M"].model.parameters < 1.05e6
    assert all(29.45e6 < SHAPES[f"31M {kind}"].model.parameters < 32.55e6 for kind in ("P256", "P32", "varied"))


def test_a_shape_survives_its_record():
    shape = SHAPES["31M varied"]
    assert shape_of(json.loads(json.dumps(shape.record()))) == shape


def test_mean_length_of_a_constant_chance_to_stop():
    assert mean_length(torch.full((2, 3), 0.5)) == pytest.approx(1 + 0.5 + 0.25)


@pytest.mark.parametrize("stops", [False, True])
def test_lengths_are_built_into_the_weights(stops: bool):
    shape = Shape(SMALL, prompts=1, samples=256, prompt=4, completion=40, stops=stops)
    torch.manual_seed(0)
    tokens = torch.randint(2, SMALL.vocabulary, (256, 4))
    model: Any = make(shape)
    settings = dict(do_sample=True, top_k=0, max_new_tokens=40)
    tokens = model.generate(tokens, attention_mask=torch.ones_like(tokens), **settings)[:, 4:]
    ended = (tokens == 1).cumsum(dim=1) > 0
    length = (~ended).sum(dim=1) + ended.any(dim=1).float()
    if stops:
        assert 0.35 * 40 < float(length.mean()) < 0.55 * 40
        assert float(length.std()) > 0.2 * 40
    else:
        assert not ended.any()


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "fake.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def contender(folder: Path, name: str, **more) -> Contender:
    return Contender(name, "fake:run", {"file": str(folder / "turns"), "name": name, **more})


def test_contenders_take_turns_and_the_first_round_is_not_counted(fake: Path):
    places = Places(fake, threads=1, rounds=2)
    measured = places.race("try", [contender(fake, "A"), contender(fake, "B")])
    assert (fake / "turns").read_text() == "A0 B0 A1 B1 A2 B2 "
    assert [r["seconds"] for r in measured["A"].rounds[""]] == [10.0, 20.0]
    assert measured["B"].peak_mb >= measured["B"].ready["imported_mb"] > 0
    assert places.failed == {}


def test_a_contender_that_breaks_is_left_out_with_the_end_of_its_log_and_the_others_go_on(fake: Path):
    places = Places(fake, threads=1, rounds=2)
    unknown = Contender("C", "fake:nothing")
    measured = places.race("try", [contender(fake, "A", breaks_at=1), contender(fake, "B"), unknown])
    assert list(measured) == ["B"] and len(measured["B"].rounds[""]) == 2
    assert places.failed["try, A"].startswith("exit status 1, ") and "out of luck" in places.failed["try, A"]
    assert "has no attribute 'nothing'" in places.failed["try, C"]


def test_a_peer_that_is_not_installed_is_said_to_be_missing_with_the_way_to_get_it(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(call, "installed", lambda module: module != "trl")
    session = call.Call(Places(tmp_path, 1, 1), ["tiny"], ["trl", "generate"])
    assert [session.has(peer) for peer in ("trl", "generate", "vllm")] == [False, True, False]
    assert session.missing == {"trl": "not installed: pip install 'trl==1.16.*'"}  # vLLM was not asked for


def test_shares_of_the_matrix_rate_follow_from_seconds():
    shape = SHAPES["tiny"]
    sizes = matmul.sizes_of(shape)
    rates = [{"median": 100.0, "min": 90.0, "max": 110.0}] + [{"median": 50.0, "min": 1.0, "max": 60.0}] * (
        len(sizes) - 1
    )
    shares = matmul.shares(shape, update_flops(shape) / 25e9, sizes, rates)
    assert shares["gflops"] == pytest.approx(25.0)
    assert (shares["share_of_square"], shares["share_of_layers"]) == pytest.approx((0.25, 0.5))


def test_a_small_run_writes_what_it_found(tmp_path: Path):
    options = ("--shapes", "tiny", "--rounds", "1", "--threads", "1", "--peers", "none", "--out", str(tmp_path))
    command = [sys.executable, str(ROOT / "scripts" / "bench.py"), "step", "overhead", "learn", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "bench.json").read_text())
    assert record["threads"] == 1 and record["rounds"] == 1 and record["missing"] == {} and record["failed"] == {}
    assert "--peers none" in record["command"] and record["versions"]["torch"] == torch.__version__
    assert record["machine"]["cores"] >= 1 and record["machine"]["matmul_gflops"] > 0
    assert record["shapes"]["tiny"]["counted"] == record["shapes"]["tiny"]["parameters"]
    [step] = record["step"]
    [entry] = step["contenders"]
    assert entry["name"] == "rlhf_pg" and entry["threads"] == 1 and len(entry["rounds"]) == 1
    assert entry["tokens"]["median"] == 2 * 2 * 4  # no completion ends early
    assert entry["rounds"][0]["metrics"]["tokens/forwarded"] > 0
    assert entry["peak_mb"] >= entry["loaded_mb"] >= entry["imported_mb"] > 0
    [overhead] = record["overhead"]
    parts = ("sampling_s", "reference_s", "forward_s", "backward_s", "optimizer_s")
    assert all(0 < overhead["seconds"][part]["median"] < overhead["seconds"]["seconds"]["median"] for part in parts)
    assert 0 < overhead["share_outside"]["median"] < 1
    [learner] = record["learn"]["contenders"]
    [run] = learner["runs"]
    assert [point["step"] for point in run["curve"]] == [0, 3, 6] and not run["reached"]
    assert run["samples"] == 6 * 2 * 2 and run["seconds"] > 0 and record["learn"]["ratios"] == {}
    assert {path.name for path in tmp_path.glob("*.png")} == {"step.png", "overhead.png", "learn.png"}


def test_a_course_ends_at_the_goal_and_its_clock_stands_while_it_evaluates(monkeypatch):
    clock = iter([0.0, 2.0, 2.5, 4.5, 100.0, 103.0, 104.0, 110.0, 200.0])
    monkeypatch.setattr(learn.time, "perf_counter", lambda: next(clock))
    accuracies = iter([0.0, 0.3, 0.7])
    course = learn.Course(goal=0.5, every=2, limit=10, greedy=lambda: next(accuracies))
    assert [course.step_done(samples=8) for _ in range(4)] == [False, False, False, True]
    assert course.answer() == {
        "seconds": 2.0 + 2.0 + 3.0 + 6.0,
        "samples": 32,
        "reached": True,
        "curve": [
            {"step": 0, "samples": 0, "seconds": 0.0, "greedy": 0.0},
            {"step": 2, "samples": 16, "seconds": 4.0, "greedy": 0.3},
            {"step": 4, "samples": 32, "seconds": 13.0, "greedy": 0.7},
        ],
    }


def test_a_course_that_never_reaches_its_goal_ends_at_its_limit():
    course = learn.Course(goal=0.5, every=2, limit=3, greedy=lambda: 0.0)
    assert [course.step_done(samples=8) for _ in range(3)] == [False, False, True]
    assert not course.answer()["reached"]


def test_ratios_of_learning_are_of_medians_over_seeds():
    ours = [{"samples": s, "seconds": s / 10, "peak_mb": 100.0} for s in (10, 30, 20)]
    other = [{"samples": s, "seconds": s, "peak_mb": 400.0} for s in (20, 10, 40)]
    assert learn.ratios(ours, other) == {"samples": 1.0, "seconds": 10.0, "peak_mb": 4.0}
    assert learn.ratios(ours, []) == {}


@pytest.mark.parametrize("wrong", [["stap"], ["--peers", "nobody"], ["--shapes", "2M"], ["--rounds", "0"]])
def test_an_unknown_word_is_refused_before_anything_runs(wrong: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        bench.parse(wrong)
    assert "error:" in capsys.readouterr().err


def test_the_command_itself_imports_no_torch():
    code = "import sys; sys.path.insert(0, 'scripts'); import bench; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
