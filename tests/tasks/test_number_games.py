"""Countdown and General Points: every published solution is checked by an evaluator written here."""

import ast
import operator
from fractions import Fraction

import pytest

from rlhf_pg.tasks.base import resolve
from rlhf_pg.tasks.general_points import solve

OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def value_and_numbers(text: str) -> tuple[Fraction, list[int], list[Fraction]]:
    """Value of an expression, the numbers in it, and every value on the way."""
    numbers, values = [], []

    def walk(node: ast.expr) -> Fraction:
        if isinstance(node, ast.Constant):
            assert isinstance(node.value, int)
            numbers.append(node.value)
            return Fraction(node.value)
        assert isinstance(node, ast.BinOp)
        values.append(OPERATIONS[type(node.op)](walk(node.left), walk(node.right)))
        return values[-1]

    return walk(ast.parse(text, mode="eval").body), numbers, values


@pytest.mark.parametrize("options", [{}, {"numbers": 4}, {"numbers": 4, "high": 100, "max_target": 1000}])
def test_countdown_solutions_reach_the_target_with_each_number_once(options):
    for row in resolve("countdown").rows("train", 1, {**options, "count": 400}):
        value, used, on_the_way = value_and_numbers(row["answer"])
        assert value == row["target"]
        assert sorted(used) == sorted(row["numbers"])
        assert all(v > 0 and v.denominator == 1 for v in on_the_way)
        assert row["question"] == f"{' '.join(map(str, row['numbers']))} -> {row['target']}:"


def test_countdown_keeps_to_its_options():
    options = {"numbers": 3, "low": 2, "high": 5, "max_target": 20, "operations": "+*", "count": 50}
    for row in resolve("countdown").rows("train", 0, options):
        assert all(2 <= n <= 5 for n in row["numbers"]) and 1 <= row["target"] <= 20
        assert not set(row["answer"]) & set("-/")


def test_countdown_splits_do_not_see_the_order_of_the_numbers():
    def problems(split):
        return {(tuple(sorted(r["numbers"])), r["target"]) for r in resolve("countdown").rows(split)}

    assert not problems("train") & problems("heldout")


def test_a_used_up_countdown_space_ends_with_its_size():
    """One and two: 1+2=3, 2-1=1, 1*2=2, 2/1=2, in two orders: at most six questions, and 1+1, 2+2, ... besides."""
    with pytest.raises(ValueError, match=r"100 train problems wanted, these options allow 1?\d;"):
        resolve("countdown").rows("train", 0, {"numbers": 2, "high": 2, "count": 100})


@pytest.mark.parametrize(("faces", "solvable"), [("11-13", 1362), ("10", 566)])
def test_general_points_finds_every_solvable_hand(faces, solvable):
    """1362 of the 1820 hands with values 1 to 13, and 566 of the 715 with values 1 to 10: long known counts."""
    task = resolve("general_points")
    assert task.problems is not None
    hands = set()
    for row in task.problems(0, task.parse({"faces": faces}), lambda key: True):
        value, used, _ = value_and_numbers(row["answer"])
        assert value == row["target"] == 24
        assert sorted(used) == sorted(row["numbers"])
        hands.add(tuple(sorted(row["numbers"])))
    assert len(hands) == solvable


def test_the_solver_needs_fractions_and_knows_when_there_is_no_way():
    assert solve([3, 3, 8, 8]) == "8/(3-(8/3))"  # the only way there is
    assert solve([1, 1, 1, 1]) is None
    assert solve([0, 0, 4, 6]) is not None


def test_faces_count_ten_and_the_question_says_so():
    counts = {"A": 1, "J": 10, "Q": 10, "K": 10}
    for row in resolve("general_points").rows("heldout", 0, {"faces": "10", "count": 20}):
        assert row["numbers"] == [counts.get(card) or int(card) for card in row["cards"]]
        assert row["question"] == f"{' '.join(row['cards'])}, JQK=10 -> 24:"
