"""Are two mathematical answers the same? Exact where possible, and in doubt no: a wrong accept costs more.

An answer is read into a `Value`: a number or formula with its unit, a tuple or interval, a set or list, a union, a
matrix, an equation, a ratio, or words. Values are compared part by part; formulas by `evaluate.same`. What this reader
does not know goes to math-verify (`symbolic`), behind guards.
"""

from __future__ import annotations

import re
from fractions import Fraction

from rlhf_pg.grading import expression, numeric, symbolic
from rlhf_pg.grading.expression import TooBig, Unreadable
from rlhf_pg.grading.latex import clean, squeeze
from rlhf_pg.grading.parse_answer import MAX_LENGTH, Value, read, ungroup


def equal(gold: str, answer: str) -> bool:
    """Whether `answer` states the same as `gold`. False for anything too long, too big or not understood."""
    if not answer.strip() or len(answer) > MAX_LENGTH:
        return False
    left, right = clean(gold), clean(answer)
    if not right or "?" in right:
        return False
    if squeeze(left) == squeeze(right):
        return True
    if len(left) > MAX_LENGTH:
        return False
    for reading in _readings(left, right):
        try:
            if _same(read(reading[0]), read(reading[1])):
                return True
        except Unreadable:
            return symbolic.equal(left, right)
        except (TooBig, ValueError, ArithmeticError, RecursionError):
            continue
    return False


def _readings(gold: str, answer: str) -> list[tuple[str, str]]:
    """A comma between digits separates thousands, decimals or items: the pairs of readings that may be compared."""
    pairs = [(ungroup(gold), ungroup(answer))]
    decimal = re.fullmatch(r"(\D{0,3})(\d+),(\d+)(\D.{0,10})?", answer)
    if decimal and re.fullmatch(r"-?\d+\.\d+", gold):
        pairs.append((gold, f"{decimal[2]}.{decimal[3]}"))
    comma = re.fullmatch(r"(\d+),(\d{1,2}|\d{4,})", gold)
    if comma and re.fullmatch(r"\d+\.\d+", answer):
        pairs.append((f"{comma[1]}.{comma[2]}", answer))
    return pairs


def _same(gold: Value, answer: Value) -> bool:
    """Part by part; see docs/rewards.md for which kinds may meet."""
    if _is_membership(gold) and _is_membership(answer) and squeeze(gold.items[0].text) != squeeze(answer.items[0].text):
        return False
    gold, answer = _bare(gold, answer, is_gold=True), _bare(answer, gold)
    if gold.kind == answer.kind == "formula":
        return _same_formula(gold, answer)
    if gold.kind == answer.kind == "relation":
        return _same_relation(gold, answer)
    if gold.kind in ("words", "based") and gold.kind == answer.kind:
        return bool(gold.text) and gold.text == answer.text
    if gold.kind == "words" and answer.kind == "formula":  # unmarked letters read as a product
        letters = answer.text.replace(" ", "")
        return letters.isalpha() and len(letters) > 1 and gold.text == letters.lower()
    if gold.kind == answer.kind == "ratio":
        if gold.unit and gold.unit != answer.unit:
            return False
        return _in_order(gold.items, answer.items)
    if gold.kind == answer.kind == "matrix":
        return gold.width == answer.width and _in_order(gold.items, answer.items)
    if gold.kind == answer.kind == "tuple":
        return gold.open == answer.open and _in_order(gold.items, answer.items)
    if {gold.kind, answer.kind} == {"tuple", "list"}:
        brackets = gold.open or answer.open
        return brackets == ("(", ")") and _in_order(gold.items, answer.items)
    if gold.kind in ("set", "list", "union") and answer.kind in ("set", "list", "union"):
        union = {gold.kind, answer.kind} & {"union"}
        return (not union or gold.kind == answer.kind) and _any_order(gold.items, answer.items)
    for one, other in ((gold, answer), (answer, gold)):
        if one.kind == "set" and len(one.items) == 1 and other.kind == "formula":
            return _same(one.items[0], other)
    return False


def _bare(value: Value, other: Value, is_gold: bool = False) -> Value:
    """Without `x =`, `x \\in`; a gold inequality in one variable met by an interval becomes one (not the reverse:
    where the gold is an interval, interval notation was asked for)."""
    if value.kind != "relation":
        return value
    if _is_membership(value):
        return value.items[-1]
    if other.kind == "relation" and not _is_membership(other):
        return value
    if set(value.open) <= {"=", r"\approx"} and _is_name(value.items[0]):
        equals = [i for i, s in zip(value.items[1:], value.open, strict=True) if s == "="]
        return equals[-1] if equals else value.items[-1]
    if is_gold and (other.kind in ("tuple", "union") or _is_membership(other)):
        return _interval(value) or value
    return value


def _is_membership(value: Value) -> bool:
    return value.kind == "relation" and value.open == (r"\in",) and _is_name(value.items[0])


def _is_name(value: Value) -> bool:
    """A symbol, `f(x)`, `AB`, `|AB|`, `(x, y)`, `A:B`, `\\frac{NO}{BO}`: something that is given a value."""
    if value.kind == "ratio":
        return all(_is_name(i) for i in value.items)
    text = re.sub(
        r"\s|[{}]", "", re.sub(r"\\(?:text|frac|angle|triangle|overline|left|right|operatorname)", "", value.text)
    )
    if re.search(r"[+*^<>=]|\d[a-zA-Z]", text):
        return False
    if re.fullmatch(r"\\?[a-zA-Z]+'*(?:_\\?\w+)?(?:\([\w,]+\))?", text):
        return len(re.sub(r"\\[a-zA-Z]+|_\w+|\(.*\)", "", text)) <= 4 or value.kind == "words"
    return re.fullmatch(r"\|[A-Z]{1,2}\||\([a-zA-Z](?:,[a-zA-Z])+\)", text) is not None


def _interval(value: Value) -> Value | None:
    """`a < x \\leq b` as an interval; None when it is not of that form."""
    signs, items = value.open, value.items
    if any(s not in ("<", ">", r"\leq", r"\geq") for s in signs):
        return None
    if len(items) == 2:
        name = [i for i in (0, 1) if _is_name(items[i])]
        if len(name) != 1:
            return None
        bound = items[1 - name[0]].text
        less = (signs[0] in ("<", r"\leq")) == (name[0] == 0)
        closed = signs[0] in (r"\leq", r"\geq")
        return read(
            rf"(-\infty,{bound}{']' if closed else ')'}" if less else rf"{'[' if closed else '('}{bound},\infty)"
        )
    if len(items) != 3 or not _is_name(items[1]) or (signs[0] in ("<", r"\leq")) != (signs[1] in ("<", r"\leq")):
        return None
    if signs[0] not in ("<", r"\leq"):
        items, signs = items[::-1], signs[::-1]
    closed = [s in (r"\leq", r"\geq") for s in signs]
    return read(f"{'[' if closed[0] else '('}{items[0].text},{items[2].text}{']' if closed[1] else ')'}")


def _same_formula(gold: Value, answer: Value) -> bool:
    percent = (gold.unit == "%") - (answer.unit == "%")
    if gold.unit and answer.unit and gold.unit != answer.unit and percent == 0:
        return False
    if percent and (gold.unit if percent < 0 else answer.unit):
        return False
    if numeric.same(gold.node, answer.node):
        return not (percent < 0 and _below_one(gold))
    if percent:
        whole = gold if percent > 0 else answer
        hundredth = ("div", whole.node, ("num", Fraction(100), "100"))
        return numeric.same(hundredth, (answer if percent > 0 else gold).node)
    return _rounded(gold, answer)


def _below_one(value: Value) -> bool:
    try:
        return abs(numeric.value(value.text)) < 1
    except (Unreadable, TooBig, ArithmeticError, TypeError):
        return False


def _rounded(gold: Value, answer: Value) -> bool:
    """A decimal of at least 8 places, rightly rounded or cut, may stand for a number that has no finite decimal."""
    decimal = answer.text.strip()
    if not re.fullmatch(r"-?\d*\.\d{8,}", decimal):
        return False
    if expression.symbols(gold.node):
        return False
    exact = numeric.evaluate(gold.node, {})
    if isinstance(exact, Fraction) and re.fullmatch(r"[25]*", _factors(exact.denominator)):
        return False
    half = Fraction(1, 2 * 10 ** len(decimal.partition(".")[2]))
    stated = Fraction(decimal)
    cut = stated + (half if stated > 0 else -half)  # middle of the numbers that are cut to this
    return numeric.within(exact, stated, half) or numeric.within(exact, cut, half)


def _factors(number: int) -> str:
    """ "2" and "5" when nothing else divides the number, else something else."""
    for prime in (2, 5):
        while number % prime == 0:
            number //= prime
    return "" if number == 1 else "x"


def _same_relation(gold: Value, answer: Value) -> bool:
    """The same chain; the chain reversed; or one equation a multiple of the other, one inequality by its sign."""
    if gold.open == answer.open and _in_order(gold.items, answer.items):
        return True
    flip = {"<": ">", ">": "<", r"\leq": r"\geq", r"\geq": r"\leq"}
    turned = tuple(flip.get(s, s) for s in reversed(answer.open))
    if gold.open == turned and _in_order(gold.items, answer.items[::-1]):
        return True
    if set(gold.open) == {"="} == set(answer.open) and _is_name(gold.items[0]) and _is_name(answer.items[0]):
        named = squeeze(gold.items[0].text) == squeeze(answer.items[0].text)
        return named and _same(gold.items[-1], answer.items[-1])
    if len(gold.open) != 1 or len(answer.open) != 1:
        return False
    sides = [v for v in (*gold.items, *answer.items)]
    if any(v.kind != "formula" or v.unit for v in sides):
        return False
    a, b = (("add", v.items[0].node, ("neg", v.items[1].node)) for v in (gold, answer))
    factor = numeric.proportional(a, b)
    if factor is None:
        return False
    if gold.open[0] in ("=", r"\neq"):
        return gold.open == answer.open
    if not isinstance(factor, Fraction):
        return False
    return answer.open[0] == (gold.open[0] if factor > 0 else flip.get(gold.open[0], ""))


def _in_order(gold: tuple[Value, ...], answer: tuple[Value, ...]) -> bool:
    return len(gold) == len(answer) and all(_alike(g, a) for g, a in zip(gold, answer, strict=True))


def _any_order(gold: tuple[Value, ...], answer: tuple[Value, ...]) -> bool:
    gold, left = _distinct(gold), list(_distinct(answer))
    if len(gold) != len(left):
        return False
    for one in gold:
        match = next((i for i, other in enumerate(left) if _alike(one, other)), None)
        if match is None:
            return False
        del left[match]
    return True


def _distinct(items: tuple[Value, ...]) -> tuple[Value, ...]:
    """Repeated points count once; repeated numbers do not go away (they may be roots with multiplicity)."""
    seen = {squeeze(i.text): i for i in items if i.kind == "tuple"}
    return tuple(i for i in items if i.kind != "tuple" or seen[squeeze(i.text)] is i)


def _alike(gold: Value, answer: Value) -> bool:
    return (squeeze(gold.text) == squeeze(answer.text) and gold.unit == answer.unit) or _same(gold, answer)
