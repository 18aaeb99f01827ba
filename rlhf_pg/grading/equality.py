"""Decides whether two mathematical answers are the same. In doubt they are not: a wrong accept costs more.

Both answers are parsed and compared part by part, formulas by value. What our parser cannot read goes to math-verify,
under conditions (`symbolic`). The functions without underscore are what other rooms may call.
"""

from __future__ import annotations

import re
from fractions import Fraction

from rlhf_pg.grading import expression, numeric, real_set, symbolic
from rlhf_pg.grading.expression import TooBig, Unreadable
from rlhf_pg.grading.extract import extract_answer, extract_gold
from rlhf_pg.grading.latex import clean, compact
from rlhf_pg.grading.parse_answer import MAX_LENGTH, Answer, parse_answer, ungroup

REVERSED = {"<": ">", ">": "<", r"\leq": r"\geq", r"\geq": r"\leq"}


def grade(completion: str, reference: str, *, finished: bool = True, prompt: str = "") -> bool | None:
    """Return whether the answer in a completion is the answer in a reference; None if the completion has no answer.

    A prompt that ends with `<think>` began the reasoning. `finished` is False for a text that was cut off, in which
    only an explicit answer counts. Text can be made to take long, so call this in a process that can be killed.
    """
    answer = extract_answer(completion, finished, prompt)
    return None if answer is None else equal(extract_gold(reference), answer)


def equal(gold: str, answer: str) -> bool:
    """Return whether `answer` is the same as `gold`. False for anything too long, too big or not understood."""
    if not answer.strip() or len(answer) > MAX_LENGTH:
        return False
    gold, answer = clean(gold), clean(answer)
    if not answer or "?" in answer:
        return False
    if compact(gold) == compact(answer):
        return True
    if len(gold) > MAX_LENGTH:
        return False
    if real_set.equal(gold, answer):
        return True
    for gold_reading, answer_reading in _readings(gold, answer):
        try:
            if _equal_answers(parse_answer(gold_reading), parse_answer(answer_reading)):
                return True
        except Unreadable:
            return symbolic.equal(gold, answer)
        except (TooBig, ValueError, ArithmeticError, RecursionError):
            continue
    return False


def _readings(gold: str, answer: str) -> list[tuple[str, str]]:
    """Return the pairs of texts to compare, since a comma between digits may separate thousands, decimals or items."""
    pairs = [(ungroup(gold), ungroup(answer))]
    decimal = re.fullmatch(r"(\D{0,3})(\d+),(\d+)(\D.{0,10})?", answer)
    if decimal and re.fullmatch(r"-?\d+\.\d+", gold):
        pairs.append((gold, f"{decimal[2]}.{decimal[3]}"))
    comma = re.fullmatch(r"(\d+),(\d{1,2}|\d{4,})", gold)
    if comma and re.fullmatch(r"\d+\.\d+", answer):
        pairs.append((f"{comma[1]}.{comma[2]}", answer))
    return pairs


def _equal_answers(gold: Answer, answer: Answer) -> bool:
    """Compare part by part; docs/rewards.md says which kinds may be equal."""
    if _is_membership(gold) and _is_membership(answer) and compact(gold.items[0].text) != compact(answer.items[0].text):
        return False
    gold, answer = _without_name(gold, answer, is_gold=True), _without_name(answer, gold)
    if gold.kind == answer.kind == "formula":
        return _equal_formulas(gold, answer)
    if gold.kind == answer.kind == "relation":
        return _equal_relations(gold, answer)
    if gold.kind in ("words", "based") and gold.kind == answer.kind:
        return bool(gold.text) and gold.text == answer.text
    if gold.kind == "words" and answer.kind == "formula":  # unmarked letters read as a product
        letters = answer.text.replace(" ", "")
        return letters.isalpha() and len(letters) > 1 and gold.text == letters.lower()
    if gold.kind == answer.kind == "ratio":
        return gold.unit in ("", answer.unit) and _in_order(gold.items, answer.items)
    if gold.kind == answer.kind == "matrix":
        return gold.width == answer.width and _in_order(gold.items, answer.items)
    if gold.kind == answer.kind == "tuple":
        return gold.brackets == answer.brackets and _in_order(gold.items, answer.items)
    if {gold.kind, answer.kind} == {"tuple", "list"}:
        return (gold.brackets or answer.brackets) == ("(", ")") and _in_order(gold.items, answer.items)
    if gold.kind in ("set", "list", "union") and answer.kind in ("set", "list", "union"):
        return (gold.kind == "union") == (answer.kind == "union") and _any_order(gold.items, answer.items)
    for left, right in ((gold, answer), (answer, gold)):
        if left.kind == "set" and len(left.items) == 1 and right.kind == "formula":
            return _equal_answers(left.items[0], right)
    return False


def _without_name(answer: Answer, other: Answer, is_gold: bool = False) -> Answer:
    """Return the answer without `x =` or `x \\in`; a gold inequality as an interval if `other` is one.

    Not the reverse: where the gold is an interval, interval notation was asked for.
    """
    if answer.kind != "relation":
        return answer
    if _is_membership(answer):
        return answer.items[-1]
    if other.kind == "relation" and not _is_membership(other):
        return answer
    if set(answer.signs) <= {"=", r"\approx"} and _is_name(answer.items[0]):
        equals = [i for i, s in zip(answer.items[1:], answer.signs, strict=True) if s == "="]
        return equals[-1] if equals else answer.items[-1]
    if is_gold and (other.kind in ("tuple", "union") or _is_membership(other)):
        return _interval(answer) or answer
    return answer


def _is_membership(answer: Answer) -> bool:
    return answer.kind == "relation" and answer.signs == (r"\in",) and _is_name(answer.items[0])


def _is_name(answer: Answer) -> bool:
    """Return whether this names a quantity, as do `x`, `f(x)`, `AB`, `|AB|`, `(x, y)`, `A:B` and `\\frac{NO}{BO}`."""
    if answer.kind == "ratio":
        return all(_is_name(i) for i in answer.items)
    text = re.sub(
        r"\s|[{}]", "", re.sub(r"\\(?:text|frac|angle|triangle|overline|left|right|operatorname)", "", answer.text)
    )
    if re.search(r"[+*^<>=]|\d[a-zA-Z]", text):
        return False
    if re.fullmatch(r"\\?[a-zA-Z]+'*(?:_\\?\w+)?(?:\([\w,]+\))?", text):
        return len(re.sub(r"\\[a-zA-Z]+|_\w+|\(.*\)", "", text)) <= 4 or answer.kind == "words"
    return re.fullmatch(r"\|[A-Z]{1,2}\||\([a-zA-Z](?:,[a-zA-Z])+\)", text) is not None


def _interval(relation: Answer) -> Answer | None:
    """Return `a < x \\leq b` or `x < a` as an interval, None for any other relation."""
    signs, items = relation.signs, relation.items
    if any(s not in ("<", ">", r"\leq", r"\geq") for s in signs):
        return None
    if len(items) == 2:
        names = [i for i in (0, 1) if _is_name(items[i])]
        if len(names) != 1:
            return None
        bound = items[1 - names[0]].text
        is_upper = (signs[0] in ("<", r"\leq")) == (names[0] == 0)
        closed = signs[0] in (r"\leq", r"\geq")
        upper, lower = rf"(-\infty,{bound}{']' if closed else ')'}", rf"{'[' if closed else '('}{bound},\infty)"
        return parse_answer(upper if is_upper else lower)
    if len(items) != 3 or not _is_name(items[1]) or (signs[0] in ("<", r"\leq")) != (signs[1] in ("<", r"\leq")):
        return None
    if signs[0] not in ("<", r"\leq"):
        items, signs = items[::-1], signs[::-1]
    closed = [s in (r"\leq", r"\geq") for s in signs]
    return parse_answer(f"{'[' if closed[0] else '('}{items[0].text},{items[2].text}{']' if closed[1] else ')'}")


def _equal_formulas(gold: Answer, answer: Answer) -> bool:
    percent = (gold.unit == "%") - (answer.unit == "%")  # 1: only the gold is in percent, -1: only the answer
    if gold.unit and answer.unit and gold.unit != answer.unit and percent == 0:
        return False
    if percent and (gold.unit if percent < 0 else answer.unit):
        return False
    if numeric.equal(gold.node, answer.node):
        return not (percent < 0 and _is_below_one(gold))
    if percent:
        in_percent, other = (gold, answer) if percent > 0 else (answer, gold)
        return numeric.equal(("div", in_percent.node, ("num", Fraction(100), "100")), other.node)
    return _is_rounded(gold, answer)


def _is_below_one(formula: Answer) -> bool:
    """Return whether this is a number below 1 in magnitude, before any factor such as "million"."""
    node = expression.parse(formula.text)
    return not expression.symbols(node) and abs(numeric.evaluate(node, {})) < 1


def _is_rounded(gold: Answer, answer: Answer) -> bool:
    """Return whether a decimal of 8 places or more is a number without finite decimal, correctly rounded or cut."""
    decimal = answer.text.strip()
    if not re.fullmatch(r"-?\d*\.\d{8,}", decimal) or expression.symbols(gold.node):
        return False
    exact = numeric.evaluate(gold.node, {})
    if isinstance(exact, Fraction) and _has_finite_decimal(exact):
        return False
    half = Fraction(1, 2 * 10 ** len(decimal.partition(".")[2]))
    rounded = Fraction(decimal)
    middle = rounded + (half if rounded > 0 else -half)  # of the numbers that are cut to this decimal
    return numeric.within(exact, rounded, half) or numeric.within(exact, middle, half)


def _has_finite_decimal(number: Fraction) -> bool:
    """Return whether 2 and 5 are the only primes in the denominator d, so that d divides 10^k with k >= log2(d)."""
    return pow(10, number.denominator.bit_length(), number.denominator) == 0


def _equal_relations(gold: Answer, answer: Answer) -> bool:
    """Compare as chains, forward and reversed, and one equation or inequality as a multiple of the other."""
    if gold.signs == answer.signs and _in_order(gold.items, answer.items):
        return True
    reversed_signs = tuple(REVERSED.get(s, s) for s in reversed(answer.signs))
    if gold.signs == reversed_signs and _in_order(gold.items, answer.items[::-1]):
        return True
    if set(gold.signs) == {"="} == set(answer.signs) and _is_name(gold.items[0]) and _is_name(answer.items[0]):
        same_name = compact(gold.items[0].text) == compact(answer.items[0].text)
        return same_name and _equal_answers(gold.items[-1], answer.items[-1])
    if len(gold.signs) != 1 or len(answer.signs) != 1:
        return False
    if any(side.kind != "formula" or side.unit for side in (*gold.items, *answer.items)):
        return False
    a, b = (("add", v.items[0].node, ("neg", v.items[1].node)) for v in (gold, answer))
    factor = numeric.ratio(a, b)
    if factor is None:
        return False
    if gold.signs[0] in ("=", r"\neq"):
        return gold.signs == answer.signs
    if not isinstance(factor, Fraction):
        return False
    return answer.signs[0] == (gold.signs[0] if factor > 0 else REVERSED.get(gold.signs[0], ""))


def _in_order(gold: tuple[Answer, ...], answer: tuple[Answer, ...]) -> bool:
    return len(gold) == len(answer) and all(_equal_items(g, a) for g, a in zip(gold, answer, strict=True))


def _any_order(gold: tuple[Answer, ...], answer: tuple[Answer, ...]) -> bool:
    gold, unmatched = _distinct(gold), list(_distinct(answer))
    if len(gold) != len(unmatched):
        return False
    for item in gold:
        match = next((i for i, other in enumerate(unmatched) if _equal_items(item, other)), None)
        if match is None:
            return False
        del unmatched[match]
    return True


def _distinct(items: tuple[Answer, ...]) -> tuple[Answer, ...]:
    """Drop repeated points. Repeated numbers stay: they may be roots with multiplicity."""
    points = {compact(i.text): i for i in items if i.kind == "tuple"}
    return tuple(i for i in items if i.kind != "tuple" or points[compact(i.text)] is i)


def _equal_items(gold: Answer, answer: Answer) -> bool:
    return (compact(gold.text) == compact(answer.text) and gold.unit == answer.unit) or _equal_answers(gold, answer)
