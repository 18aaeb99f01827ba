"""`rewards check` and `rewards score`, and what they say of bad input."""

import datetime
import json
from decimal import Decimal
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from rlhf_pg.commands import run_rewards


def rows(path: Path, *lines: object) -> Path:
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))
    return path


def test_score_writes_one_line_per_row_in_order(tmp_path):
    data = rows(tmp_path / "d.jsonl", *[{"pred": rf"\boxed{{{n}}}", "gold": "3"} for n in range(40)])
    out = tmp_path / "out.jsonl"
    assert run_rewards.score("math_answer", data, "pred", "gold", out) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["score"] for line in lines] == [float(n == 3) for n in range(40)]
    assert {line["outcome"] for line in lines} == {"scored"}


def test_the_columns_may_be_nested(tmp_path, capsys):
    row = {"out": {"text": "so #### 0"}, "reward_model": {"ground_truth": 0}}
    data, out = rows(tmp_path / "d.jsonl", row), tmp_path / "out.jsonl"
    assert run_rewards.score("gsm8k", data, "out.text", "reward_model.ground_truth", out) == 0
    assert json.loads(out.read_text())["score"] == 1.0
    assert run_rewards.check("gsm8k", data, answer="reward_model.ground_truth") == 0
    assert "2 of 2 scored" in capsys.readouterr().out
    assert run_rewards.score("gsm8k", data, "out.text", "reward_model.truth", out) == 1
    assert "no column 'reward_model.truth'; it has out.text, reward_model.ground_truth" in " ".join(
        capsys.readouterr().err.split()
    )


def test_lone_surrogates_pass_through(tmp_path, capsys):
    data = rows(tmp_path / "d.jsonl", '{"pred": "\\ud800 42", "gold": "42"}')
    out = tmp_path / "out.jsonl"
    assert run_rewards.score("gsm8k", data, "pred", "gold", out) == 0
    assert json.loads(out.read_text())["score"] == 1.0
    assert run_rewards.check("gsm8k", data, answer="gold", completion="pred") == 0


def test_a_corrupt_line_is_named_by_file_and_line(tmp_path, capsys):
    data = rows(tmp_path / "d.jsonl", {"pred": "1", "gold": "1"}, '{"pred": ')
    assert run_rewards.score("gsm8k", data, "pred", "gold", tmp_path / "o") == 1
    assert "d.jsonl:2: not JSON" in capsys.readouterr().err.replace("\n", "")


def test_a_missing_or_null_column_is_named_with_those_there(tmp_path, capsys):
    data = rows(tmp_path / "d.jsonl", {"pred": "1", "gold": "1"}, {"pred": "1", "gold": None})
    assert run_rewards.score("gsm8k", data, "text", "gold", tmp_path / "o") == 1
    assert "no column 'text'; it has gold, pred" in capsys.readouterr().err.replace("\n", " ")
    assert run_rewards.score("gsm8k", data, "pred", "gold", tmp_path / "o") == 1
    assert "row 2 has null in column 'gold'" in capsys.readouterr().err.replace("\n", " ")


def test_an_empty_file_and_an_unknown_function_are_refused(tmp_path, capsys):
    data = rows(tmp_path / "d.jsonl")
    assert run_rewards.score("gsm8k", data, "pred", "gold", tmp_path / "o") == 1
    assert "no rows" in capsys.readouterr().err
    assert run_rewards.check("gsm9k") == 1
    assert "did you mean 'gsm8k'" in capsys.readouterr().err.replace("\n", " ")


def test_check_shows_the_arguments_and_tries_the_gold_answers(tmp_path, capsys):
    data = rows(tmp_path / "d.jsonl", {"question": "?", "answer": "2+2=4\n#### 4"})
    assert run_rewards.check("gsm8k", data) == 0
    shown = capsys.readouterr().out
    assert "gets completion, answer; if there: finish" in shown
    assert "1 of 1 scored" in shown


def test_check_fails_on_an_argument_the_data_lacks(tmp_path, capsys):
    data = rows(tmp_path / "d.jsonl", {"question": "?", "answer": "4"})
    assert run_rewards.check("countdown", data) == 1
    assert "'numbers'" in capsys.readouterr().err


def test_check_fails_when_the_function_does(tmp_path, capsys):
    (tmp_path / "bad.py").write_text("def bad(completion):\n    raise KeyError('oops')\n")
    data = rows(tmp_path / "d.jsonl", {"answer": "4"})
    assert run_rewards.check(f"{tmp_path / 'bad.py'}:bad", data) == 1
    assert "oops" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"rows": 0}, "--rows must be at least 1, got 0"),
        ({"rows": -3}, "--rows must be at least 1, got -3"),
        ({"memory_mb": 0}, "--memory-mb must be at least 1, got 0"),
        ({"timeout_s": 0.0}, "--timeout-s must be above 0"),
        ({"timeout_s": -1.0}, "--timeout-s must be above 0"),
    ],
)
def test_a_number_out_of_range_is_named_by_its_option(tmp_path, capsys, options, named):
    data = rows(tmp_path / "d.jsonl", {"answer": "4"})
    assert run_rewards.check("gsm8k", data, **options) == 1
    assert named in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize(("option", "value"), [("workers", 0), ("workers", -1), ("memory_mb", -5)])
def test_score_names_the_option_too(tmp_path, capsys, option, value):
    data = rows(tmp_path / "d.jsonl", {"answer": "4"})
    assert run_rewards.score("gsm8k", data, "answer", "answer", tmp_path / "o", **{option: value}) == 1
    assert f"--{option.replace('_', '-')} must be at least 1" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("content", ["", "\n\n", " \n"])
def test_check_refuses_a_file_without_rows(tmp_path, capsys, content):
    (tmp_path / "d.jsonl").write_text(content)
    assert run_rewards.check("gsm8k", tmp_path / "d.jsonl") == 1
    assert "d.jsonl: no rows" in capsys.readouterr().err.replace("\n", "")


def test_check_names_a_file_that_is_no_text(tmp_path, capsys):
    (tmp_path / "d.jsonl").write_bytes(b"PAR1\xff\xfe\x00")
    assert run_rewards.check("gsm8k", tmp_path / "d.jsonl") == 1
    assert "d.jsonl" in capsys.readouterr().err.replace("\n", "")


def test_gold_answers_in_a_column_of_numbers_are_read_from_their_value(tmp_path, capsys):
    golds = [5e-05, 2.5e16, 0.1, 1e22, 1234567.0]
    texts = ["0.00005", "25000000000000000", ".1", "10^{22}", "1,234,567"]
    wrong = ["5", "16", "1", "22", "7"]
    data = rows(
        tmp_path / "d.jsonl",
        *[{"right": t, "wrong": w, "gold": g} for t, w, g in zip(texts, wrong, golds, strict=True)],
    )
    for column, expected in (("right", 1.0), ("wrong", 0.0)):
        out = tmp_path / f"{column}.jsonl"
        assert run_rewards.score("gsm8k", data, column, "gold", out) == 0
        assert [json.loads(line)["score"] for line in out.read_text().splitlines()] == [expected] * 5
    assert run_rewards.check("gsm8k", data, answer="gold") == 0
    assert "10 of 10 scored" in capsys.readouterr().out


def test_a_function_that_wants_more_memory_is_told_of_the_option(tmp_path, capsys):
    (tmp_path / "eats.py").write_text("def eats(completion):\n    return len(bytearray(300 << 20))\n")
    data = rows(tmp_path / "d.jsonl", {"answer": "4"})
    assert run_rewards.check(f"{tmp_path / 'eats.py'}:eats", data, memory_mb=128) == 1
    assert "raise --memory-mb" in capsys.readouterr().err.replace("\n", " ")
    assert run_rewards.check(f"{tmp_path / 'eats.py'}:eats", data, memory_mb=1024) == 0


def test_a_parquet_file_with_a_timestamp_column_is_scored(tmp_path, capsys):
    (tmp_path / "year.py").write_text("def year(completion, **kwargs):\n    return kwargs['when'].year\n")
    when = [datetime.datetime(2024, 2, 29), datetime.datetime(1999, 1, 1)]
    columns = {"when": when, "answer": [Decimal("1.50"), Decimal("2")], "text": ["1.5", "2"]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "d.parquet")
    fn, out = f"{tmp_path / 'year.py'}:year", tmp_path / "out.jsonl"
    assert run_rewards.check(fn, tmp_path / "d.parquet") == 0
    assert run_rewards.score(fn, tmp_path / "d.parquet", "text", "answer", out) == 0
    assert [json.loads(line)["score"] for line in out.read_text().splitlines()] == [2024.0, 1999.0]
    assert run_rewards.score("gsm8k", tmp_path / "d.parquet", "text", "answer", out) == 0
    assert [json.loads(line)["score"] for line in out.read_text().splitlines()] == [1.0, 1.0]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl.gz", "pattern", "saved"])
def test_score_reads_what_a_run_reads(tmp_path, kind):
    import gzip

    rows = [("#### 7", "007"), ("#### 8", "7")]
    if kind in ("csv", "tsv"):
        mark = {"csv": ",", "tsv": "\t"}[kind]
        data = tmp_path / f"d.{kind}"
        data.write_text("".join(f"{a}{mark}{b}\n" for a, b in [("text", "gold"), *rows]))
    else:
        lines = [json.dumps({"text": a, "gold": b}) for a, b in rows]
        data = tmp_path / "d.jsonl.gz"
        data.write_bytes(gzip.compress("\n".join(lines).encode()))
        if kind == "pattern":
            for number, line in enumerate(lines):
                (tmp_path / f"part-{number}.jsonl").write_text(line)
            data = tmp_path / "part-*.jsonl"
        elif kind == "saved":
            from datasets import Dataset

            data = tmp_path / "s"
            Dataset.from_list([{"text": a, "gold": b} for a, b in rows]).save_to_disk(data)
    out = tmp_path / "out.jsonl"
    assert run_rewards.score("gsm8k", data, "text", "gold", out, workers=1) == 0
    assert [json.loads(line)["score"] for line in out.read_text().splitlines()] == [1.0, 0.0]


def test_of_several_files_the_one_with_the_wrong_row_is_named(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text('{"text": "7", "gold": "7"}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "7", "gold": "7"}\n{"text": "7"}\n')
    assert run_rewards.score("gsm8k", tmp_path / "*.jsonl", "text", "gold", tmp_path / "out.jsonl") == 1
    assert f"{tmp_path / 'b.jsonl'}: row 2 has no column 'gold'" in capsys.readouterr().err.replace("\n", " ")


def test_a_completion_may_be_a_message_of_the_assistant(tmp_path):
    row = {
        "prompt": [{"role": "user", "content": "3+4?"}],
        "completion": [{"role": "assistant", "content": "#### 7"}],
        "answer": "7",
    }
    data, out = tmp_path / "d.jsonl", tmp_path / "out.jsonl"
    data.write_text(json.dumps(row))
    assert run_rewards.score("gsm8k", data, "completion", "answer", out, workers=1) == 0
    assert json.loads(out.read_text())["score"] == 1.0
