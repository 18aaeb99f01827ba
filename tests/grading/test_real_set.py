"""One set of real numbers in its notations, and sets that differ in a point, a bound or a variable."""

import itertools

import pytest

from rlhf_pg.grading import equality

ALL_BUT_TWO = [
    r"(-\infty,2)\cup(2,\infty)", r"(2,\infty)\cup(-\infty,2)", r"\mathbb{R}\setminus\{2\}", r"\mathbb R - \{2\}",
    r"\mathbb{R} \backslash \{2\}", r"\mathbb{R}\smallsetminus\left\{2\right\}", r"\R\setminus\{ 2 \}",
    r"\{x \mid x \neq 2\}", r"\{x : x \ne 2\}", r"\{x \in \mathbb{R} \mid x \neq 2\}",
    r"\left\{x\,\middle|\,x\neq 2\right\}",
    r"x \neq 2", r"x \ne 2", "x≠2", r"x<2 \text{ or } x>2", r"x<2 or x>2", r"x<2 \lor x>2", r"x > 2 \text{ or } x < 2",
    r"x \in (-\infty,2)\cup(2,\infty)", r"x\in\mathbb{R}\setminus\{2\}", r"x \in \mathbb{R}, x \neq 2",
    r"ℝ - \{2\}", "ℝ∖\\{2\\}",
    r"(-\infty,\infty)\setminus\{2\}", r"\text{all real numbers except } 2", r"\text{all real numbers except }x=2",
    r"\text{all real numbers } x \text{ such that } x \neq 2", r"(-\infty, 4/2) \cup (\sqrt{4}, +\infty)",
    r"\{x \in \mathbb{R} : x<2 \text{ or } x>2\}", r"x \notin \{2\}", r"\mathbb{R}\setminus\{\frac{4}{2}\}",
]  # fmt: skip
ALL_BUT_TWO_POINTS = [
    r"(-\infty,-1)\cup(-1,1)\cup(1,\infty)", r"\mathbb{R}\setminus\{-1,1\}", r"\mathbb{R} - \{1, -1\}",
    r"\mathbb{R}\setminus\{\pm 1\}", r"x \neq \pm 1", r"x \neq 1, -1", r"x\neq 1 \text{ and } x \neq -1",
    r"x \neq -1, x \neq 1", r"\{x \mid x \neq 1, x \neq -1\}", r"\text{all real numbers except } 1 \text{ and } -1",
]  # fmt: skip
REALS = [r"\mathbb{R}", r"(-\infty,\infty)", r"\mathbb R", r"\text{all real numbers}", "all real numbers",
         r"x\in\mathbb{R}",
         r"\Bbb{R}", "ℝ", r"(-\infty, +\infty)", r"\{x \mid x \in \mathbb{R}\}", r"-\infty < x < \infty",
         r"\text{the set of all real numbers}", "All real numbers."]  # fmt: skip
PUNCTURED = [r"[0,5]\setminus\{2\}", r"[0,2)\cup(2,5]", r"(2,5]\cup[0,2)", r"\{x \mid 0 \leq x \leq 5, x \neq 2\}",
             r"0 \le x \le 5, x \ne 2", r"0\leq x<2 \text{ or } 2<x\leq 5", r"[0,5] - \{2\}",
             r"[0,2)\cup(2,4]\cup[3,5]"]  # fmt: skip
FAMILIES = {"a point": ALL_BUT_TWO, "two points": ALL_BUT_TWO_POINTS, "reals": REALS, "punctured": PUNCTURED}


@pytest.mark.parametrize(
    ("gold", "answer"),
    [(f[0], a) for f in FAMILIES.values() for a in f] + [(a, f[0]) for f in FAMILIES.values() for a in f],
)
def test_the_notations_of_a_set_are_the_same(gold, answer):
    assert equality.equal(gold, answer)


@pytest.mark.parametrize(("one", "other"), itertools.permutations(FAMILIES, 2))
def test_different_sets_are_different_in_every_notation(one, other):
    pairs = itertools.product(FAMILIES[one], FAMILIES[other])
    assert [pair for pair in pairs if equality.equal(*pair)] == []


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        (r"(-\infty,2)\cup(2,\infty)", r"\mathbb{R}\setminus\{3\}"),
        (r"(-\infty,2)\cup(2,\infty)", r"\mathbb{R}\setminus\{2,3\}"),
        (r"(-\infty,2)\cup(2,\infty)", r"\mathbb{R}\setminus[2,3]"),
        (r"(-\infty,2]\cup(2,\infty)", r"x \neq 2"),
        (r"(-\infty,2)\cup(2,\infty)", r"(-\infty,2)\cup[2,\infty)"),
        (r"(-\infty,2)\cup(2,\infty)", r"\{2\}"),
        (r"(-\infty,2)\cup(2,\infty)", r"\mathbb{Z}\setminus\{2\}"),
        (r"(-\infty,2)\cup(2,\infty)", r"\mathbb{C}\setminus\{2\}"),
        (r"(-\infty,2)\cup(2,\infty)", r"x < 2 \text{ and } x > 2"),
        (r"(-\infty,2)\cup(2,\infty)", "x=2"),
        (r"(-\infty,2)\cup(2,\infty)", r"x \geq 2 \text{ or } x < 2"),
        (r"(-\infty,2)\cup(2,\infty)", r"\mathbb{R}\setminus\{a\}"),
        (r"x \in (-\infty,2)\cup(2,\infty)", r"y \neq 2"),
        (r"\{x \mid x \neq 2\}", r"\{x \mid y \neq 2\}"),
        (r"\mathbb{R}", r"\mathbb{R}\setminus\{0\}"),
        (r"\mathbb{R}", r"\mathbb{R}^2"),
        (r"\mathbb{R}", "R"),
        (r"\mathbb{R}", r"\text{real}"),
        ("[0,1)", r"0 \leq x < 1"),
        ("(1,2)", r"1 < x < 2"),
        (r"(0,\infty)", "x>0"),
        ("(1,2)", "[1,2]"),
        ("x>2", r"[2,\infty)"),
        (r"\text{all real numbers except } 2", r"\text{all real numbers except } 3"),
        (r"\mathbb{R}\setminus\{\frac13\}", r"\mathbb{R}\setminus\{0.333\}"),
        (r"(1,3)\setminus\{2\}", r"(1,3)"),
        (r"\{1,2\}", r"(1,2)"),
        ("-2", r"\{x \mid x \neq 2\}"),
    ],
)
def test_near_misses_are_different(gold, answer):
    assert not equality.equal(gold, answer)


def test_an_inequality_as_gold_may_be_answered_with_an_interval_but_not_the_reverse():
    assert equality.equal(r"0 \leq x < 1", "[0,1)")
    assert equality.equal(r"0 \leq x < 1", r"\{x \mid 0 \leq x < 1\}")
    assert equality.equal("[0,1)", r"\{x \mid 0 \leq x < 1\}")
    assert not equality.equal("[0,1)", r"0 \leq x < 1")


def test_long_sets_take_no_time():
    union = r"\cup".join(f"({n},{n + 1})" for n in range(0, 60, 2))
    assert equality.equal(union, union.replace(r"\cup", r" \cup ").replace("(0,1)", r"(0,\frac{2}{2})"))
    for text in ["x<" * 300, r"\{x|" * 100, r"\mathbb{R}-" * 60, r"\cup" * 200, "(" * 900, r"x \neq 1," * 90]:
        assert not equality.equal(r"(-\infty,2)\cup(2,\infty)", text)
