"""`rewards check` and `rewards score`, and what they say of bad input."""

import datetime
import importlib.metadata
import json
from decimal import Decimal
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from rlhf_pg import cli
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


SHAPED = """def shaped(completion, answer="", scale=1.0):
    if completion == "broken":
        raise ValueError("cannot read it")
    return {"right": float(completion == answer), "short": -scale * len(completion)}
def needs_prompt(completion, prompt): return float(prompt == "2+2?")
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    Path("mine.py").write_text(SHAPED)
    return tmp_path


def refused(capsys, *arguments):
    assert cli.main(["rewards", *arguments]) == 1
    return " ".join(capsys.readouterr().err.split())


def test_check_refuses_a_missing_answer_column_also_where_the_function_can_do_without(here, capsys):
    rows(here / "d.jsonl", {"question": "2+2?", "gold": "4", "text": "4"})
    common = ["--data", "d.jsonl"]
    asks = "d.jsonl: row 1 has no column 'answer', which shaped asks for; it has gold, question, text"
    assert asks in refused(capsys, "check", "mine.py:shaped", *common)
    assert asks in refused(capsys, "check", "mine.py:shaped", *common, "--completion", "text")
    assert "name the gold answers by --answer" in refused(capsys, "check", "gsm8k", *common)
    assert "no column 'golt'; it has gold, question, text; did you mean 'gold'?" in refused(
        capsys, "check", "format_r1", *common, "--completion", "text", "--answer", "golt"
    )
    assert "gold answers are what is scored" in refused(capsys, "check", "format_r1", *common)
    assert cli.main(["rewards", "check", "format_r1", *common, "--completion", "text"]) == 0


@pytest.mark.parametrize("command", ["check", "score"])
def test_a_missing_problem_column_is_refused_where_it_is_named_or_needed(here, capsys, command):
    rows(here / "d.jsonl", {"question": "2+2?", "answer": "4", "text": "4"})
    options = ["--data", "d.jsonl", "--completion", "text", "--answer", "answer"]
    options += ["--out", "o.jsonl"] if command == "score" else []
    assert "no column 'prompt', which needs_prompt asks for" in refused(
        capsys, command, "mine.py:needs_prompt", *options
    )
    assert "no column 'problem'" in refused(capsys, command, "mine.py:shaped", *options, "--prompt", "problem")
    assert cli.main(["rewards", command, "mine.py:needs_prompt", *options, "--prompt", "question"]) == 0


def test_check_shows_gold_parts_and_the_line_that_raised_within_80_columns(here, capsys):
    rows(here / "d.jsonl", {"answer": "4", "text": "4"}, {"answer": "13", "text": "broken"})
    options = ["--data", "d.jsonl", "--completion", "text", "--args", "scale=0.25"]
    assert cli.main(["rewards", "check", "mine.py:shaped", *options]) == 1
    out = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "always with scale=0.25" in lines
    assert "1 4 4 0.75 right 1 scored" in lines and "short -0.25" in lines
    assert "2 broken 13 error" in lines
    assert 'row 2: mine.py:3, `raise ValueError("cannot read it")`: ValueError: cannot read it' in lines
    assert max(len(line) for line in out.splitlines() if "mine.py" not in line) <= 80


@pytest.mark.parametrize(
    ("words", "scale"), [(["scale=2"], 2), (["{scale: 2}"], 2), (['{"scale": 3}', "scale=2.5"], 2.5)]
)
def test_score_takes_arguments_and_prints_mean_parts_and_outcomes(here, capsys, words, scale):
    texts = ["4", "5", "broken"]
    rows(here / "d.jsonl", *[{"answer": "4", "text": text} for text in texts])
    options = ["--data", "d.jsonl", "--completion", "text", "--answer", "answer", "--out", "o.jsonl"]
    assert cli.main(["rewards", "score", "mine.py:shaped", *options, "--args", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        f"shaped: mean {0.5 - scale:.4g} over 2 of 3 rows (1 have no reward)",
        "shaped/right: mean 0.5 over 2 rows",
        f"shaped/short: mean {-scale:.4g} over 2 rows",
        "outcomes: 2 scored, 1 error",
    ]
    assert lines[4].startswith("the first without a reward: shaped, sample 2: mine.py:3, ")
    assert lines[5] == "written: o.jsonl"


@pytest.mark.parametrize("word", ["scale", "{scale: [}", "=2"])
def test_arguments_that_are_none_say_how_to_write_them(here, capsys, word):
    assert f"--args {word}: give name=value or '{{name: value}}'" in refused(
        capsys, "check", "mine.py:shaped", "--args", word
    )


def test_list_names_shipped_functions_and_entry_points_with_their_arguments(here, capsys, monkeypatch):
    group = "rlhf_pg.rewards"
    monkeypatch.syspath_prepend(str(here))
    (here / "judging.py").write_text('def judge(completion, level: int = 3):\n    """Ask a judge."""\n')
    entries = [importlib.metadata.EntryPoint(n, f"{m}:judge", group) for n, m in (("judge", "judging"), ("gone", "no"))]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: entries)
    assert cli.main(["rewards", "list"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    for name in ("countdown", "format_r1", "length", "math_answer", "overlong"):
        assert any(line.startswith(f"{name}(completion") for line in lines)
    after = lines[lines.index("gsm8k(completion, answer, finish='stop', prompt='')") + 1]
    assert after == "GSM8K: whether a completion ends in the number that the reference has."
    assert lines[lines.index("judge(completion, level=3)") + 1] == "Ask a judge."
    assert lines[lines.index("gone") + 1].startswith("cannot be used: reward 'gone': no cannot be loaded")
