"""Cells of .csv and .tsv files are the text that is written in them; what is wrong is said with its line."""

import gzip
import sys
from typing import Any

import pytest
from chat_templates import CHATML, characters

from rlhf_pg.data.prompts import to_prompts
from rlhf_pg.data.source import load_rows
from rlhf_pg.models.tokenizer import character_tokenizer


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    "written", ["007", "1e5", "1,000", "0.50", "True", "null", "NA", "1/2", "+3", " 4", "0x1F", "="]
)
@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_a_cell_is_the_text_that_was_written(tmp_path, written, suffix):
    comma = {"csv": ",", "tsv": "\t"}[suffix]
    path = write(tmp_path / f"d.{suffix}", f'q{comma}a\n1?{comma}"{written}"\n')
    assert load_rows(path=path) == [{"q": "1?", "a": written}]


def test_a_gold_answer_reaches_the_reward_as_it_was_written(tmp_path):
    path = write(tmp_path / "d.csv", 'prompt,answer\n1?,007\n2?,1e5\n3?,"1,000"\n')
    limits: Any = dict(max_prompt_tokens=64, context_length=128, max_new_tokens=8)
    made = to_prompts(load_rows(path=path), character_tokenizer(), split_name="train", template="plain", **limits)
    assert [p.columns["answer"] for p in made.prompts] == ["007", "1e5", "1,000"]


def test_quotes_line_ends_and_other_separators_inside_cells_are_kept(tmp_path):
    path = write(tmp_path / "d.csv", b'\xef\xbb\xbfq,a\r\n"two\r\nlines, ""said""",\xc3\xa9\t;\r\n\r\nx,y\r\n')
    rows = load_rows(path=path)
    assert rows == [{"q": 'two\r\nlines, "said"', "a": "é\t;"}, {"q": "x", "a": "y"}]
    assert [rows.where(0), rows.where(1)] == [f"{path}:2", f"{path}:5"]


def test_an_empty_cell_is_a_missing_value_and_that_is_said(tmp_path):
    path = write(tmp_path / "d.csv", 'q,a,hint\n1?,1,\n2?,2,""\n3?,3,h\n')
    rows = load_rows(path=path)
    assert [row["hint"] for row in rows] == [None, None, "h"]
    assert rows.remarks() == ["2 empty cells of column 'hint' read as missing values"]


def test_an_empty_answer_is_named_by_its_line(tmp_path):
    rows = load_rows(path=write(tmp_path / "d.csv", "prompt,answer\n1?,1\n2?,\n"))
    limits: Any = dict(max_prompt_tokens=64, context_length=128, max_new_tokens=8)
    with pytest.raises(ValueError, match=r"d\.csv:3: answer column 'answer' is None .*empty cell"):
        to_prompts(rows, character_tokenizer(), split_name="train", template="plain", **limits)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("q,a\n1,2\n3\n", r"d\.csv:3: 1 cell, and the header has 2 columns"),
        ("q,a\n1,2,3\n", r"d\.csv:2: 3 cells, and the header has 2 columns.*quotes"),
        ('q,a\n1,2\n"3,4\n5,6\n', r"d\.csv:3: not valid csv"),
        ('q,a\n"1"x,2\n', r"d\.csv:2: not valid csv"),
        ("q,a,q\n1,2,3\n", r"d\.csv:1: column 'q' appears twice"),
        ("q;a\n1;2\n", r"d\.csv:1: one column, 'q;a'.*commas"),
        ("q\ta\n1\t2\n", r"d\.csv:1: one column.*\.tsv"),
        ("q,a\n", "d.csv: no rows in it"),
        ("", "d.csv: no rows in it"),
        (b"q,a\ncaf\xe9,1\n", r"d\.csv:2: not UTF-8.*save it as UTF-8"),
        ("q,a\n1,2\n".encode("utf-16"), r"d\.csv:1: not UTF-8"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path, content, told):
    with pytest.raises(ValueError, match=told):
        load_rows(path=write(tmp_path / "d.csv", content))


def test_a_cell_may_be_longer_than_pythons_limit(tmp_path):
    path = write(tmp_path / "d.csv", f"q,a\n{'x' * 300_000},1\n")
    assert len(load_rows(path=path)[0]["q"]) == 300_000


def test_messages_in_a_cell_may_be_json(tmp_path):
    cell = '[{"role": "user", "content": "1+1?"}]'.replace('"', '""')
    path = write(tmp_path / "d.csv", f'prompt,answer\n"{cell}",2\n')
    limits: Any = dict(max_prompt_tokens=64, context_length=128, max_new_tokens=8)
    made = to_prompts(load_rows(path=path), characters(CHATML), split_name="train", **limits)
    assert made.prompts[0].text == "<im>user\n1+1?</im>\n<im>assistant\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [("d.csv.gz", b"a\n1\n"), ("d.jsonl.gz", b'{"a": "1"}\n'), ("d.json.gz", b'[{"a": "1"}]'), ("D.CSV", b"a\n1\n")],
)
def test_gzip_and_capital_endings_are_read(tmp_path, name, content):
    path = write(tmp_path / name, gzip.compress(content) if name.endswith("gz") else content)
    assert load_rows(path=path) == [{"a": "1"}]


@pytest.mark.parametrize("content", [gzip.compress(b'{"a": 1}\n' * 99)[:-12], b'{"a": 1}', b""])
def test_a_damaged_gzip_file_is_named(tmp_path, content):
    with pytest.raises(ValueError, match=r"d\.jsonl\.gz: cannot be read|d\.jsonl\.gz: no rows"):
        load_rows(path=write(tmp_path / "d.jsonl.gz", content))


@pytest.mark.parametrize("name", ["d.pkl", "d.pt", "d.npy", "d.py", "d.xlsx", "d", "d.jsonl.zst"])
def test_pickles_programs_and_unknown_kinds_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=rf"{name}: unknown kind of file.*\.csv"):
        load_rows(path=write(tmp_path / name, b"raise SystemExit"))


def test_csv_needs_no_datasets_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert load_rows(path=write(tmp_path / "d.csv", "a\n1\n")) == [{"a": "1"}]
