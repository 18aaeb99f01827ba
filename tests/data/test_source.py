"""Rows from files, data sets and tasks; what is wrong with a file is said with its line."""

import json
import sys

import pytest

from rlhf_pg.data.source import load_rows


def write(path, *lines: str | bytes):
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines))
    return path


def test_jsonl_json_and_parquet_give_the_same_rows(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [{"q": "1+1\u2028?", "a": 2}, {"q": "é", "a": None}]
    write(tmp_path / "d.jsonl", *(json.dumps(row, ensure_ascii=False) for row in rows))
    write(tmp_path / "d.json", json.dumps(rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "d.parquet")
    for suffix in ("jsonl", "json", "parquet"):
        assert load_rows(path=tmp_path / f"d.{suffix}") == rows


def test_blank_lines_and_a_byte_order_mark_are_no_rows_and_lines_keep_their_numbers(tmp_path):
    rows = load_rows(path=write(tmp_path / "d.jsonl", b'\xef\xbb\xbf{"a": 1}\r', "", "  ", '{"a": 2}', ""))
    assert rows == [{"a": 1}, {"a": 2}]
    assert rows.where(1) == f"{tmp_path / 'd.jsonl'}:4"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"a": 1', "not valid JSON"),
        ("not json", "not valid JSON"),
        (b'{"a": "\xff"}', "not valid JSON.*utf-8"),
        ('{"a": 1, "a": 2}', "key 'a' appears twice"),
        ('{"a": NaN}', "NaN is not JSON"),
        ('{"a": ' + "9" * 5000 + "}", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[1, 2]", "every row must be an object"),
        ("null", "every row must be an object"),
    ],
)
def test_a_bad_line_is_named_by_file_and_line(tmp_path, line, told):
    path = write(tmp_path / "d.jsonl", '{"a": 1}', line, '{"a": 3}')
    with pytest.raises(ValueError, match=rf"d\.jsonl:2: .*{told}"):
        load_rows(path=path)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("empty.jsonl", b"", "no rows"),
        ("empty.json", b"[]", "no rows"),
        ("blank.json", b"", "not valid JSON"),
        ("object.json", b'{"a": 1}', "a list of objects is needed, this is a dict"),
        ("mixed.json", b'[{"a": 1}, 2]', "row 1: every row must be an object"),
        ("bad.parquet", b"PAR0", "not a readable parquet file"),
        ("data.txt", b"a,b", r"unknown kind of file '\.txt'; use \.jsonl, \.json, \.parquet, \.csv, \.tsv"),
    ],
)
def test_a_bad_file_is_named(tmp_path, name, content, told):
    with pytest.raises(ValueError, match=f"{name}.*{told}"):
        load_rows(path=write(tmp_path / name, content))


def test_a_missing_file_is_named_with_one_that_may_be_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "present.jsonl", '{"a": 1}')
    with pytest.raises(ValueError, match=r"no file presents\.jsonl in .*; did you mean 'present\.jsonl'"):
        load_rows(path="presents.jsonl")
    with pytest.raises(ValueError, match=r"no file data/a\.jsonl in .*; there is no folder data"):
        load_rows(path="data/a.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(ValueError, match=r"folder\.jsonl: a folder.*is empty"):
        load_rows(path="folder.jsonl")


def test_limit_keeps_the_first_rows_and_their_lines(tmp_path):
    path = write(tmp_path / "d.jsonl", "", '{"a": 1}', '{"a": 2}', '{"a": 3}')
    rows = load_rows(path=path, limit=2)
    assert rows == [{"a": 1}, {"a": 2}]
    assert rows.where(1) == f"{path}:3"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({}, "give a task, a path or a data set name"),
        ({"path": "a.jsonl", "dataset": "b"}, "not both"),
        ({"path": "a.jsonl", "options": {"digits": 1}}, "do nothing here"),
        ({"task": "gsm8k", "options": {"digits": 1}}, "do nothing here"),
        ({"task": "arithmatic"}, "did you mean 'arithmetic'"),
        ({"task": "arithmetic", "split": "test"}, "no split 'test'"),
        ({"task": "arithmetic", "subset": "main"}, "subset 'main' does nothing without a data set"),
    ],
)
def test_contradictory_arguments_are_refused(arguments, told):
    with pytest.raises(ValueError, match=told):
        load_rows(**arguments)


def test_a_generated_task_takes_split_seed_options_and_limit():
    from rlhf_pg.tasks.arithmetic import task

    options = {"digits": 1, "count": 9}
    assert load_rows(task="arithmetic", options=options, seed=4) == task.rows("train", 4, options)
    assert load_rows(task=task, options=options, seed=4, limit=3) == task.rows("train", 4, options)[:3]
    heldout = load_rows(task=task, options={"digits": 1, "count": 2}, split="heldout", seed=4)
    assert heldout == task.rows("heldout", 4, {"digits": 1, "count": 2})


@pytest.fixture
def hub(monkeypatch):
    """Stands in for `datasets`: records what was asked for."""
    import datasets

    asked = []
    rows = datasets.Dataset.from_list([{"question": "1+1?", "answer": "#### 2"}])

    def load_dataset(name, subset=None, *, split):
        asked.append((name, subset, split))
        if name == "no/network":
            raise ConnectionError("unreachable")
        return rows

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_a_file_task_without_a_path_asks_the_hub_for_its_data_set(hub):
    assert load_rows(task="gsm8k") == [{"question": "1+1?", "answer": "#### 2"}]
    load_rows(task="gsm8k", split="heldout")
    load_rows(task="math", split="heldout")
    load_rows(dataset="some/thing", subset="small", split="validation")
    load_rows(task="gsm8k", dataset="my/copy", split="dev")
    assert hub == [
        ("openai/gsm8k", "main", "train"),
        ("openai/gsm8k", "main", "test"),
        ("DigitalLearningGmbH/MATH-lighteval", None, "test"),
        ("some/thing", "small", "validation"),
        ("my/copy", None, "dev"),
    ]


def test_without_a_network_the_local_path_is_suggested(hub):
    with pytest.raises(
        ValueError, match=r"no/network, train: cannot be loaded \(ConnectionError.*give it as data.*path"
    ):
        load_rows(dataset="no/network")


def test_without_the_datasets_package_the_local_path_is_suggested(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"`datasets` cannot be imported.*path"):
        load_rows(dataset="some/thing")


def test_local_files_need_no_datasets_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert load_rows(path=write(tmp_path / "d.jsonl", '{"a": 1}')) == [{"a": 1}]
