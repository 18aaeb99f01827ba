"""`rewards check` and `rewards score`, and what they say of bad input."""

import json
from pathlib import Path

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
