"""Gold answers of GSM8K and MATH: by hand, and on the real files where they are present."""

import json
import os
from pathlib import Path

import pytest

from rlhf_pg.tasks import gsm8k
from rlhf_pg.tasks import math as competition

DATA = Path(os.environ.get("RLHF_PG_DATA", Path(__file__).parents[2].parent / "shared" / "data"))


def real(name: str) -> list[dict]:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{name} is not under {DATA} (set RLHF_PG_DATA)")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("He has 3+4=<<3+4=7>>7.\n#### 7", "7"),
        ("#### 1,234,567 ", "1234567"),
        ("a #### 1\n#### -2.50", "-2.50"),
        ("72", "72"),
    ],
)
def test_gsm8k_gold_is_the_number_after_the_last_marker(answer, gold):
    assert gsm8k.gold(answer) == gold


@pytest.mark.parametrize("answer", ["", "####", "no marker, no number", "#### seven", "5\n####"])
def test_gsm8k_answer_without_a_number_is_refused(answer):
    with pytest.raises(ValueError, match="no number after"):
        gsm8k.gold(answer)


def test_gsm8k_solution_has_no_calculator_annotations():
    row = {"answer": "48/2 = <<48/2=24>>24 clips.\n#### 24"}
    assert gsm8k.solution(row) == "48/2 = 24 clips.\n#### 24"
    assert gsm8k.solution({"answer": 24}) is None


@pytest.mark.parametrize(("name", "rows"), [("gsm8k/train.jsonl", 7473), ("gsm8k/test.jsonl", 1319)])
def test_every_real_gsm8k_gold_is_a_whole_number(name, rows):
    golds = [gsm8k.gold(row["answer"]) for row in real(name)]
    assert len(golds) == rows
    assert all(int(gold) == float(gold) for gold in golds)


@pytest.mark.parametrize(
    ("solution", "gold"),
    [
        (r"so $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        (r"first \boxed{1}, then \boxed{2}", "2"),
        (r"\fbox{7}", "7"),
        (r"\boxed 9$ done", "9"),
        (r"\boxed{ \{1, 2\} }", r"\{1, 2\}"),
        (r"\boxed{\left[0,\infty\right)}", r"\left[0,\infty\right)"),
        (r"\boxed{a\}", None),
        (r"\boxed{3} and an unfinished \boxed{\frac{1}{2", "3"),
        ("no box", None),
        (r"\boxed{}", None),
    ],
)
def test_math_gold_is_the_last_balanced_box(solution, gold):
    if gold is None:
        with pytest.raises(ValueError, match="balanced braces"):
            competition.last_boxed(solution)
    else:
        assert competition.last_boxed(solution) == gold


def test_every_real_math500_answer_is_the_last_box_of_its_solution():
    rows = real("math/math500_test.jsonl")
    assert len(rows) == 500
    assert [row["answer"] for row in rows] == [competition.last_boxed(row["solution"]) for row in rows]
