"""Arithmetic problems and their worked steps."""

import re

import pytest

from rlhf_pg.tasks.base import resolve

HAND_WORKED = {  # lowest column first: digits, carry in = carry out, digit
    "27+48=": "7+8+0=15 2+4+1=07 =75",
    "99+1=": "9+1+0=10 9+0+1=10 =100",
    "0+0=": "0+0+0=00 =0",
    "52-17=": "2-7-0=15 5-1-1=03 =35",
    "12-34=": "4-2-0=02 3-1-0=02 =-22",
    "100-1=": "0-1-0=19 0-0-1=19 1-0-1=00 =99",
    "27*48=": "27*8=216 27*40=1080 =1296",
    "5*0=": "5*0=0 =0",
}


def space(**options) -> dict[str, dict]:
    """Every problem of both splits by its question."""
    task = resolve("arithmetic")
    assert task.problems is not None
    return {row["question"]: row for row in task.problems(0, task.parse(options), lambda key: True)}


def test_words_ask_the_same_problems_in_a_sentence():
    options = {"operations": "+-*", "low": 10, "high": 99, "count": 60}
    formulas = resolve("arithmetic").rows("train", options=options)
    sentences = resolve("arithmetic").rows("train", options=options | {"words": True})
    names = {"+": "plus", "-": "minus", "*": "times"}
    for formula, sentence in zip(formulas, sentences, strict=True):
        a, operation, b = re.fullmatch(r"(\d+)([+*-])(\d+)=", formula["question"]).groups()  # pyright: ignore
        assert sentence == formula | {"question": f"What is {a} {names[operation]} {b}?"}


def test_steps_are_school_arithmetic():
    made = space(operations="+-*", low=0, high=100, style="steps")
    assert {question: made[question]["solution"] for question in HAND_WORKED} == HAND_WORKED


def test_the_space_is_every_pair_once():
    made = space(operations="+-", low=3, high=12)
    assert set(made) == {f"{a}{op}{b}=" for a in range(3, 13) for b in range(3, 13) for op in "+-"}


def test_answers_are_right_and_are_the_solution_of_style_answer():
    for question, row in space(operations="+-*", digits=1).items():
        a, op, b = int(question[0]), question[1], int(question[2])
        wanted = a + b if op == "+" else a - b if op == "-" else sum(a for _ in range(b))
        assert row["answer"] == row["solution"] == str(wanted)


def test_every_step_is_true_and_the_last_number_is_the_answer():
    for row in space(operations="+-", low=0, high=120, style="steps").values():
        *steps, last = row["solution"].split(" ")
        for step in steps:
            x, op, y, _, carry, out, digit = re.fullmatch(r"(\d)([+-])(\d)([+-])(\d)=(\d)(\d)", step).groups()  # pyright: ignore
            sign = 1 if op == "+" else -1
            assert int(x) + sign * (int(y) + int(carry)) == int(digit) + sign * 10 * int(out)
        assert last == f"={row['answer']}"


def test_a_sum_held_out_is_held_out_in_both_orders():
    train = {row["question"] for row in resolve("arithmetic").rows("train", options={"count": 8500})}
    for row in resolve("arithmetic").rows("heldout", options={"count": 500}):
        a, b = row["question"][:-1].split("+")
        assert f"{b}+{a}=" not in train


def test_about_a_tenth_is_held_out():
    """Of the 10,000 sums of two-digit numbers."""
    assert len(resolve("arithmetic").rows("heldout", options={"count": 900})) == 900
    with pytest.raises(ValueError, match="these options allow"):
        resolve("arithmetic").rows("heldout", options={"count": 1_100})


def test_nine_digits_cost_no_more_than_what_is_taken():
    assert len(resolve("arithmetic").rows("train", options={"digits": 9, "count": 100})) == 100


def test_a_share_of_direct_solutions_only_claims_the_result_and_changes_no_question_or_answer():
    task = resolve("arithmetic")
    worked = task.rows("train", 0, {"style": "steps", "count": 2000})
    mixed = task.rows("train", 0, {"style": "steps", "direct": 0.7, "count": 2000})
    assert [(r["question"], r["answer"]) for r in mixed] == [(r["question"], r["answer"]) for r in worked]
    direct = [r for r in mixed if r["solution"] == f"={r['answer']}"]
    assert 0.66 < len(direct) / 2000 < 0.74  # 1.3 standard errors a percent
    assert all(m == w for m, w in zip(mixed, worked, strict=True) if m not in direct)


def test_direct_without_steps_is_refused():
    with pytest.raises(ValueError, match="direct"):
        resolve("arithmetic").rows("train", 0, {"style": "answer", "direct": 0.5})
