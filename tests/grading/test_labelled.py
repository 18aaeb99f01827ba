"""The grader on labelled cases that others made (Math-Verify's own tests, and adversarial ones), where present."""

import json
import os
from pathlib import Path

import pytest

from rlhf_pg.grading import equality
from rlhf_pg.rewards import plugin
from rlhf_pg.rewards.score import Scorer
from rlhf_pg.types import Sample

DATA = Path(os.environ.get("RLHF_PG_DATA", Path(__file__).parents[2].parent / "shared" / "data"))


def verdicts(name: str) -> tuple[list[dict], list]:
    path = DATA / "grader" / f"{name}.jsonl"
    if not path.is_file():
        pytest.skip(f"no labelled cases at {path}; set RLHF_PG_DATA")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    with Scorer([plugin.resolve("math_answer")]) as scorer:
        return rows, scorer.score([Sample("", r["pred"], "stop", {"answer": r["gold"]}) for r in rows])


def test_math_verifys_own_cases():
    rows, scores = verdicts("math_verify_tests")
    right = [s.reward for r, s in zip(rows, scores, strict=True) if r["expected"]]
    wrong = [s.reward for r, s in zip(rows, scores, strict=True) if not r["expected"]]
    assert sum(wrong) == 0.0
    assert sum(right) / len(right) > 0.92


def test_adversarial_cases():
    rows, scores = verdicts("own_adversarial")
    assert [s.reward for s in scores] == [float(r["expected"]) for r in rows]


def test_payloads_are_rejected_and_nothing_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, scores = verdicts("own_payloads")
    assert [s.reward for s in scores] == [0.0] * len(scores)
    assert not list(tmp_path.iterdir())


def test_every_gold_of_math_500_equals_itself_and_no_mutation_of_it():
    path = DATA / "math" / "math500_test.jsonl"
    if not path.is_file():
        pytest.skip(f"no MATH-500 at {path}; set RLHF_PG_DATA")
    golds = list(dict.fromkeys(json.loads(line)["answer"] for line in path.read_text().splitlines()))
    assert all(
        equality.equal(g, g.replace("\\frac", "\\dfrac").replace("(", "\\left(").replace(")", "\\right)"))
        for g in golds
    )
    accepted = [
        g for g in golds if equality.equal(g, f"{g}+1") or equality.equal(g, f"{g}, 17") or equality.equal(g, f"7{g}")
    ]
    assert accepted == []
