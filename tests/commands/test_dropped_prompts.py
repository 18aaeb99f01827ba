"""Rows that were dropped are counted, with the limit and what to do, wherever there are fewer prompts for it."""

import json

import pytest

from rlhf_pg import cli

LONG = "1+1" * 20 + "="  # 61 tokens of one character


def recipe(folder, questions, **sections):
    path = folder / "rows.jsonl"
    rows = [{"q": q, "a": "2", "solution": " 2"} for q in questions]
    path.write_text("\n".join(map(json.dumps, rows)))
    source = {"path": str(path), "prompt": "q", "answer": "a", "template": "plain"}
    raw = {
        "run": {"dir": str(folder / "run")},
        "model": {"path": "tiny"},
        "data": {"train": source, "max_prompt_tokens": 10},
        **sections,
    }
    written = folder / "recipe.yaml"
    written.write_text(json.dumps(raw))
    return str(written)


RL = {
    "rollout": {"prompts_per_step": 4, "samples_per_prompt": 2, "max_new_tokens": 4},
    "rewards": [{"fn": "gsm8k"}],
    "log": {"live": "off"},
}


def told(capsys):
    printed = capsys.readouterr()
    return " ".join((printed.out + printed.err).split())


def test_too_few_prompts_for_a_step_says_how_many_rows_were_dropped_and_by_which_limit(tmp_path, capsys):
    assert cli.main(["train", recipe(tmp_path, ["1+1=", *[LONG] * 7], **RL)]) == 2
    text = told(capsys)
    assert (
        "4 prompts per step wanted, there are 1 (7 of 8 rows dropped, their prompts being longer than 10 tokens" in text
    )
    assert "raise data.max_prompt_tokens" in text


def test_where_the_context_is_what_limits_it_is_named(tmp_path, capsys):
    sections = {**RL, "rollout": {**RL["rollout"], "max_new_tokens": 500}}
    path = recipe(tmp_path, ["1+1=", *[LONG] * 7], **sections)
    assert cli.main(["train", path, "data.max_prompt_tokens=1000"]) == 2
    assert "the model's context length 512 less max_new_tokens 500" in told(capsys)


def test_an_evaluation_says_which_rows_it_leaves_out(tmp_path, capsys):
    path = recipe(tmp_path, ["1+1=", "1+1 =", LONG], **RL)
    rows = str(tmp_path / "rows.jsonl")
    few = ["rollout.prompts_per_step=1", "eval.samples=1", "eval.k=[1]", f"data.eval.path={rows}"]
    assert cli.main(["eval", path, *few]) == 0
    text = told(capsys)
    assert (
        "data.eval: 2 prompts, template plain; 1 of 3 rows dropped, their prompts being longer than 10 tokens" in text
    )


@pytest.mark.parametrize("questions", [["1+1=", LONG]])
def test_a_cold_start_says_which_rows_it_leaves_out(tmp_path, capsys, questions):
    path = recipe(tmp_path, questions, sft={"batch_size": 1})
    assert cli.main(["sft", path]) == 0
    assert "1 of 2 rows dropped, their prompts being longer than 10 tokens" in told(capsys)
