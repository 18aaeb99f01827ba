"""Tasks by name, their options, and the stable order and split of generated problems."""

import os
import random
import subprocess
import sys

import pytest

from rlhf_pg.names import shipped
from rlhf_pg.tasks.base import permutation, resolve

GENERATED = ["arithmetic", "countdown", "general_points"]


def test_shipped_tasks_are_the_files_beside_base():
    names = shipped("rlhf_pg.tasks")
    assert names == ["arithmetic", "countdown", "general_points", "gsm8k", "math"]
    assert [resolve(name).name for name in names] == names


def test_unknown_task_names_the_nearest():
    with pytest.raises(ValueError, match=r"no task 'countdwn'.*did you mean 'countdown'"):
        resolve("countdwn")


def test_a_task_may_live_in_a_module_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "my_own_tasks.py").write_text(
        "from rlhf_pg.tasks.base import Task\nmine = Task('mine', question=('q',))\nother = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert resolve("my_own_tasks:mine").question == ("q",)
    with pytest.raises(ValueError, match="is a int, not an rlhf_pg Task"):
        resolve("my_own_tasks:other")
    with pytest.raises(ValueError, match="cannot be loaded"):
        resolve("my_own_tasks:absent")
    with pytest.raises(ValueError, match="cannot be loaded"):
        resolve("no.such.module")


def test_unknown_option_names_the_nearest():
    with pytest.raises(ValueError, match=r"no option 'operation'.*did you mean 'operations'"):
        resolve("arithmetic").rows(options={"operation": "+"})


@pytest.mark.parametrize(
    ("task", "options", "told"),
    [
        ("arithmetic", {"operations": "+/"}, "operations.*must be some of"),
        ("arithmetic", {"operations": ""}, "operations.*must be some of"),
        ("arithmetic", {"digits": 2, "low": 0, "high": 9}, "not both"),
        ("arithmetic", {"low": 3}, "go together"),
        ("arithmetic", {"low": 9, "high": 3}, "low 9 is above high 3"),
        ("arithmetic", {"count": 0}, "count"),
        ("arithmetic", {"style": "prose"}, "style"),
        ("countdown", {"low": 9, "high": 3}, "low 9 is above high 3"),
        ("countdown", {"operations": "^"}, "operations.*must be some of"),
        ("general_points", {"faces": "12"}, "faces"),
    ],
)
def test_wrong_options_are_refused_by_name(task, options, told):
    with pytest.raises(ValueError, match=f"task '{task}', options.*{told}"):
        resolve(task).rows(options=options)


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match=r"no split 'test'.*'train' and 'heldout'"):
        resolve("arithmetic").rows("test")


def test_more_problems_than_exist_are_refused_with_their_number():
    with pytest.raises(ValueError, match=r"1000 train problems wanted, these options allow 9\d"):
        resolve("arithmetic").rows("train", options={"digits": 1, "count": 1000})


def test_a_file_task_makes_no_rows():
    with pytest.raises(ValueError, match="reads rows from a file or data set"):
        resolve("gsm8k").rows("train")


def test_permutation_is_fisher_yates_on_a_list():
    """The textbook swap loop, drawing from the same generator."""
    draw, items = random.Random("key").random, list(range(50))
    for i in range(50):
        j = i + int(draw() * (50 - i))
        items[i], items[j] = items[j], items[i]
    assert list(permutation(50, "key")) == items
    assert list(permutation(50, "other")) != items


@pytest.mark.parametrize("task", GENERATED)
def test_splits_share_no_question_whatever_the_seeds(task):
    train = {row["question"] for seed in (0, 1) for row in resolve(task).rows("train", seed, {"count": 300})}
    heldout = {row["question"] for seed in (2, 3) for row in resolve(task).rows("heldout", seed, {"count": 60})}
    assert len(train) > 300 and len(heldout) > 60
    assert not train & heldout


@pytest.mark.parametrize("task", GENERATED)
def test_rows_are_distinct_and_the_smaller_count_is_a_prefix(task):
    many = resolve(task).rows("train", 5, {"count": 200})
    assert len({row["question"] for row in many}) == 200
    assert resolve(task).rows("train", 5, {"count": 20}) == many[:20]
    assert resolve(task).rows("train", 6, {"count": 20}) != many[:20]


def test_another_process_with_another_hash_seed_makes_the_same_rows():
    code = (
        "from rlhf_pg.tasks.base import resolve\n"
        "print([r['question'] for t in ('arithmetic', 'countdown', 'general_points')"
        " for s in ('train', 'heldout') for r in resolve(t).rows(s, 3, {'count': 20})])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_the_first_problems_never_change():
    """Published results name these: a change of order or split is a change of the data set."""
    rows = resolve("arithmetic").rows("train", 0, {"operations": "+-*", "count": 3})
    heldout = resolve("arithmetic").rows("heldout", 0, {"operations": "+-*", "count": 3})
    assert [row["question"] for row in rows + heldout] == ["69-32=", "24*56=", "17-93=", "56-96=", "58*85=", "93-8="]
