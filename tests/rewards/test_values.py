"""Data values on their way to a reward function: which keep their type, and which are refused before anything runs."""

import datetime
import decimal
import json
import pathlib
import uuid

import numpy as np
import pytest

from rlhf_pg.rewards import plugin
from rlhf_pg.rewards.arguments import check_rows
from rlhf_pg.rewards.score import Scorer
from rlhf_pg.rewards.values import from_json, to_json
from rlhf_pg.types import Sample

UTC = datetime.UTC
TRAVEL = [
    datetime.datetime(2024, 2, 29, 12, 30, 1, 5), datetime.datetime(2024, 1, 1, tzinfo=UTC), datetime.date(2024, 2, 29),
    datetime.time(23, 59), datetime.timedelta(days=-1, seconds=3, microseconds=7), decimal.Decimal("0.10"),
    uuid.UUID(int=7), pathlib.Path("/a/b"), b"\x00\xff", bytearray(b"ab"), {"when": [datetime.date(2024, 1, 1)]},
    {"rlhf_pg.value": 1, "other": 2}, [], {}, None, True, "\ud800",
]  # fmt: skip


@pytest.mark.parametrize("value", TRAVEL, ids=repr)
def test_a_value_arrives_as_it_was(value):
    arrived = json.loads(json.dumps(to_json(value)), object_hook=from_json)
    assert arrived == value
    assert type(arrived) is type(value)


def test_numpy_and_tuples_arrive_as_numbers_and_lists():
    values = {
        "a": np.float32(0.5),
        "b": np.arange(3),
        "c": (1, np.bool_(True)),
        "d": np.datetime64("2024-01-01T00:00:00"),
    }
    arrived = json.loads(json.dumps(to_json(values)), object_hook=from_json)
    assert arrived == {"a": 0.5, "b": [0, 1, 2], "c": [1, True], "d": datetime.datetime(2024, 1, 1)}


@pytest.mark.parametrize(
    ("value", "named"),
    [({1, 2}, "a set"), (object(), "a object"), (1j, "a complex"), ({1: "x"}, "key 1, a int"), ([{"x": {2}}], "a set"),
     ({"rlhf_pg.value": 1}, "another meaning"), (lambda: 1, "a function")],
)  # fmt: skip
def test_what_cannot_travel_is_named_by_type(value, named):
    with pytest.raises(TypeError, match=named):
        to_json(value)


@pytest.fixture
def functions(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def every(completion, **kwargs): return float(kwargs['when'].year)\n"
        "def one(completion, level): return float(level)\n"
        "def batch(completions, **kwargs): return [float(w.year) for w in kwargs['when']]\n"
    )
    return lambda name: plugin.resolve(f"{tmp_path / 'mine.py'}:{name}")


@pytest.mark.parametrize("name", ["every", "batch"])
def test_a_timestamp_reaches_a_function_with_kwargs(functions, name):
    columns = {"when": datetime.datetime(2024, 5, 6), "answer": "4"}
    check_rows([functions(name)], [("row 0", columns)])
    with Scorer([functions(name)], workers=1) as scorer:
        assert [s.reward for s in scorer.score([Sample("p", "c", "stop", columns)])] == [2024.0]


def test_a_value_that_cannot_travel_is_named_by_row_column_and_type(functions):
    rows = [("prompt train/0", {"tags": []}), ("prompt train/1", {"tags": {1, 2}})]
    with pytest.raises(
        ValueError, match=r"prompt train/1: column 'tags' holds a set.*mine.py:every.*\*\*kwargs.*drop it"
    ):
        check_rows([functions("every")], rows)
    check_rows([functions("one")], [(name, {"level": 1, **columns}) for name, columns in rows])


def test_a_row_that_lacks_an_argument_is_named(functions):
    with pytest.raises(ValueError, match=r"prompt train/1 has no column 'level', which reward .*one.* asks for"):
        check_rows([functions("one")], [("prompt train/0", {"level": 1}), ("prompt train/1", {"other": 1})])
