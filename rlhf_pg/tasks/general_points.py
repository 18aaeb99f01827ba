"""General Points: make 24 from four playing cards, each used exactly once (Chu et al. 2025, arXiv:2501.17161).

"3 J 5 A -> 24:". Training with J, Q, K as 11, 12, 13 and testing with "3 J 5 A, JQK=10 -> 24:" shows whether a rule was
learned.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, Literal

from rlhf_pg.tasks import countdown
from rlhf_pg.tasks.base import Options, Row, Task, permutation

CARDS = ["A", *map(str, range(2, 11)), "J", "Q", "K"]
TARGET = 24
INSTRUCTION = f"{countdown.INSTRUCTION} The numbers are cards: A is 1; J, Q, K are 11, 12, 13 unless stated otherwise."
Tree = int | tuple[Any, str, Any]  # a number, or (left, operation, right)
Term = tuple[int, int, Tree]  # an exact rational, numerator and denominator unreduced, and how it came about


class GeneralPointsOptions(Options):
    faces: Literal["11-13", "10"] = "11-13"  # what J, Q, K count


def problems(seed: int, options: GeneralPointsOptions, in_split: Callable[[str], bool]) -> Iterator[Row]:
    """Yield every solvable hand once. The split goes by the cards: a hand is held out for both values of `faces`."""
    hands = list(itertools.combinations_with_replacement(range(13), 4))
    for index in permutation(len(hands), f"general_points/{seed}"):
        order = permutation(4, f"general_points/{seed}/{index}")
        hand = [hands[index][i] for i in order]
        if not in_split(" ".join(CARDS[card] for card in sorted(hand))):
            continue
        numbers = [card + 1 if options.faces == "11-13" else min(card + 1, 10) for card in hand]
        answer = solve(numbers)
        if answer is not None:
            cards = [CARDS[card] for card in hand]
            rule = "" if options.faces == "11-13" else ", JQK=10"
            yield {
                "question": f"{' '.join(cards)}{rule} -> {TARGET}:",
                "answer": answer,
                "solution": answer,
                "cards": cards,
                "numbers": numbers,
                "target": TARGET,
            }


def solve(numbers: list[int], target: int = TARGET) -> str | None:
    """Return an expression over all `numbers` that equals `target` exactly, or None when there is none."""
    tree = _search([(number, 1, number) for number in numbers], target)
    return None if tree is None else _text(tree).removeprefix("(").removesuffix(")")


def _search(terms: list[Term], target: int) -> Tree | None:
    """Join every two terms in every way and search on."""
    if len(terms) == 1:
        numerator, denominator, tree = terms[0]
        return tree if numerator == target * denominator else None
    for i, j in itertools.combinations(range(len(terms)), 2):
        rest = [term for k, term in enumerate(terms) if k not in (i, j)]
        for joined in _joins(terms[i], terms[j]):
            tree = _search([*rest, joined], target)
            if tree is not None:
                return tree
    return None


def _joins(left: Term, right: Term) -> Iterator[Term]:
    """Yield what every operation makes of two terms, in both orders where the order matters."""
    (a, b, x), (c, d, y) = left, right
    yield a * d + c * b, b * d, (x, "+", y)
    yield a * c, b * d, (x, "*", y)
    yield a * d - c * b, b * d, (x, "-", y)
    yield c * b - a * d, b * d, (y, "-", x)
    if c:
        yield a * d, b * c, (x, "/", y)
    if a:
        yield c * b, a * d, (y, "/", x)


def _text(tree: Tree) -> str:
    if isinstance(tree, int):
        return str(tree)
    left, operation, right = tree
    return f"({_text(left)}{operation}{_text(right)})"


task = Task("general_points", problems, GeneralPointsOptions, template="plain", instruction=INSTRUCTION)
