"""Prompts: ids, columns, golds, the length limit, and errors with their place."""

import json
import os
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

import pytest

from rlhf_pg.data.prompts import load_rows, to_prompts
from rlhf_pg.models.tokenizer import character_tokenizer

DATA = Path(os.environ.get("RLHF_PG_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
ROOM = dict(max_prompt_tokens=100, context_length=200, max_new_tokens=50)


def prompts(rows, **arguments):
    settings = {"split_name": "train", "prompt_column": "q", "answer_column": "a", "template": "plain", **ROOM}
    return to_prompts(rows, character_tokenizer(), **{**settings, **arguments})


def file(tmp_path, *rows):
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return load_rows(path=path)


def test_a_prompt_keeps_its_row_with_question_and_gold_as_text():
    made = prompts([{"q": "1+1=", "a": 2, "level": 3}]).prompts[0]
    assert (made.id, made.text) == ("train/0", "1+1=")
    assert made.columns == {"q": "1+1=", "a": 2, "level": 3, "question": "1+1=", "answer": "2"}
    assert character_tokenizer().decode(list(made.tokens)) == "1+1="


def test_the_gsm8k_task_extracts_the_gold_and_keeps_the_solution():
    row = {"question": "How many?", "answer": "2*3=<<2*3=6>>6\n#### 6"}
    arguments = dict(prompt_column=None, answer_column=None, task="gsm8k")
    columns = prompts([row], **arguments).prompts[0].columns
    assert columns == {"question": "How many?", "answer": "6", "solution": "2*3=6\n#### 6"}


def test_the_math_task_prefers_the_answer_column_and_can_use_the_box():
    arguments = dict(prompt_column=None, answer_column=None, task="math")
    boxed = {"problem": "p", "solution": r"so \boxed{7}"}
    assert prompts([boxed], **arguments).prompts[0].columns["answer"] == "7"
    assert prompts([{**boxed, "answer": "8"}], **arguments).prompts[0].columns["answer"] == "8"
    given = prompts([{**boxed, "answer": "8"}], **{**arguments, "answer_column": "solution"})
    assert given.prompts[0].columns["answer"] == "7"


def test_a_task_states_its_own_template_and_the_recipe_overrides_it():
    rows = load_rows(task="arithmetic", limit=1)
    arguments = dict(
        prompt_column=None, answer_column=None, task="arithmetic", max_prompt_tokens=1000, context_length=2000
    )
    assert prompts(rows, **{**arguments, "template": "auto"}).template == "plain"
    assert prompts(rows, **{**arguments, "template": None}).template == "plain"
    assert prompts(rows, **{**arguments, "template": "r1"}).template == "r1"


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        (dict(max_prompt_tokens=4, context_length=200, max_new_tokens=50), 1),
        (dict(max_prompt_tokens=5, context_length=200, max_new_tokens=50), 2),
        (dict(max_prompt_tokens=100, context_length=54, max_new_tokens=50), 1),
        (dict(max_prompt_tokens=100, context_length=55, max_new_tokens=50), 2),
        (dict(max_prompt_tokens=100, context_length=56, max_new_tokens=50), 3),
    ],
)
def test_prompts_that_leave_no_room_are_dropped_and_counted_and_ids_stay(limits, kept):
    """Prompts of 6, 4 and 5 characters."""
    made = prompts([{"q": "10+10=", "a": 20}, {"q": "1+1=", "a": 2}, {"q": "10+1=", "a": 11}], **limits)
    assert (len(made.prompts), made.dropped) == (kept, 3 - kept)
    assert [p.id for p in made.prompts] == {1: ["train/1"], 2: ["train/1", "train/2"]}.get(
        kept, ["train/0", "train/1", "train/2"]
    )


def test_when_nothing_fits_the_limits_are_told():
    with pytest.raises(ValueError, match=r"all 1 prompts are longer than 3 tokens \(shortest 4\).*context length 53"):
        prompts([{"q": "1+1=", "a": 2}], context_length=53)
    with pytest.raises(ValueError, match="longer than -10 tokens"):
        prompts([{"q": "1+1=", "a": 2}], context_length=40)


def test_a_missing_column_is_named_with_the_line_and_the_columns_there(tmp_path):
    rows = file(tmp_path, {"q": "1", "a": "1"}, {"question": "2", "a": "2"})
    with pytest.raises(ValueError, match=r"d\.jsonl:2: no prompt column 'q'; the columns are 'question', 'a'"):
        prompts(rows)
    with pytest.raises(ValueError, match=r"d\.jsonl:1: no answer column 'gold'; the columns are 'q', 'a'"):
        prompts(rows, answer_column="gold")
    with pytest.raises(ValueError, match=r"d\.jsonl:1: no prompt column 'problem' or 'question'"):
        prompts(rows, prompt_column=None, answer_column=None, task="math")


def test_without_a_task_the_columns_must_be_named(tmp_path):
    rows = file(tmp_path, {"q": "1", "a": "1"})
    with pytest.raises(ValueError, match=r"d\.jsonl: without a task, name the prompt and answer columns.*; .*'q', 'a'"):
        prompts(rows, prompt_column=None, answer_column=None)
    with pytest.raises(ValueError, match=r"d\.jsonl: without a task, name the answer column \(data\.\*\.answer\)"):
        prompts(rows, answer_column=None)


@pytest.mark.parametrize("value", [None, "", " \n", True, [1], {"x": 1}])
def test_an_answer_that_is_no_text_or_number_is_refused_with_its_line(tmp_path, value):
    with pytest.raises(ValueError, match=r"d\.jsonl:2: answer column 'a' is"):
        prompts(file(tmp_path, {"q": "1", "a": "1"}, {"q": "2", "a": value}))
    with pytest.raises(ValueError, match=r"d\.jsonl:1: prompt column 'q' is"):
        prompts(file(tmp_path, {"q": value, "a": "1"}))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (5e-05, "0.00005"),
        (2.5e16, "25000000000000000"),
        (1e22, "1" + "0" * 22),
        (-0.5, "-0.5"),
        (18.0, "18.0"),
        (Decimal("1E+3"), "1000"),
        (Decimal("0.10"), "0.10"),
        (10**20, "1" + "0" * 20),
    ],
)
def test_a_gold_number_is_written_out(value, text):
    assert prompts([{"q": "1", "a": value}]).prompts[0].columns["answer"] == text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), Decimal("NaN")])
def test_a_gold_that_is_no_number_is_refused(value):
    with pytest.raises(ValueError, match=r"train, row 0: answer column 'a' is .*; text or a number is needed"):
        prompts([{"q": "1", "a": value}])


def test_a_row_without_a_gold_is_refused_with_its_line(tmp_path):
    rows = file(tmp_path, {"question": "1", "answer": "#### 1"}, {"question": "2", "answer": "it depends"})
    with pytest.raises(ValueError, match=r"d\.jsonl:2: column 'answer': no number after '####' in 'it depends'"):
        prompts(rows, prompt_column=None, answer_column=None, task="gsm8k")


def test_an_empty_template_is_refused_and_is_not_auto():
    with pytest.raises(ValueError, match="template ''"):
        prompts([{"q": "1", "a": 1}], template="")


def test_rows_of_a_plain_list_are_named_by_split_and_number():
    with pytest.raises(ValueError, match="train, row 1: answer column 'a' is None"):
        prompts([{"q": "1", "a": 1}, {"q": "2", "a": None}])


@pytest.mark.parametrize(
    ("task", "name", "count"), [("gsm8k", "gsm8k/test.jsonl", 1319), ("math", "math/math500_test.jsonl", 500)]
)
def test_real_rows_become_prompts(task, name, count):
    if not (DATA / name).exists():
        pytest.skip(f"{name} is not under {DATA} (set RLHF_PG_DATA)")
    rows = load_rows(task=task, path=DATA / name)
    made = to_prompts(
        rows,
        character_tokenizer(),
        split_name="eval",
        task=task,
        max_prompt_tokens=10_000,
        context_length=20_000,
        max_new_tokens=100,
    )
    assert (len(made.prompts), made.dropped, made.template) == (count, 0, "r1")
    assert len({prompt.id for prompt in made.prompts}) == count
    assert all(prompt.columns["question"] in prompt.text for prompt in made.prompts)


def tokenizer(eos=None):
    return SimpleNamespace(eos_token_id=eos)
