"""Evaluates expressions, to exact rationals where their form allows and to 60 digits otherwise, and compares them.

Exponents, factorials and bits of a rational are bounded before anything is computed. Two expressions with symbols are
equal when they agree at three points (Schwartz 1980, Zippel 1979: a false agreement is improbable).
"""

from __future__ import annotations

import hashlib
import math
from fractions import Fraction
from typing import Any

from mpmath import mp

from rlhf_pg.grading.expression import Node, TooBig, Unreadable, symbols

Number = Any  # a Fraction, or a real or complex number of mpmath
MAX_BITS = 40_000
DIGITS, AGREED_DIGITS = 60, 40  # decimal digits computed, and compared


def equal(a: Node, b: Node) -> bool:
    """Return whether two expressions are equal as rationals, or to 40 digits at every point. Raises TooBig.

    With symbols they must be defined at two points at least.
    """
    names = sorted(symbols(a) | symbols(b))
    points = 0
    for point in range(3):
        values = {n: _value_at(n, point) for n in names}
        try:
            agree = _equal_at(a, b, values)
        except ArithmeticError:
            continue
        if not agree:
            return False
        points += 1
        if not names:
            return True
    return points >= 2


def ratio(a: Node, b: Node) -> Number | None:
    """Return the constant c with a = c b at every point, None if there is none or one side is constant."""
    names = sorted(symbols(a))
    if not names or names != sorted(symbols(b)):
        return None
    ratios = []
    for point in range(4):
        values = {n: _value_at(n, point) for n in names}
        try:
            ratios.append(_divide(evaluate(a, values), evaluate(b, values)))
        except ArithmeticError:
            continue
    if len(ratios) < 3 or not all(_close(ratios[0], r) for r in ratios[1:]) or _close(ratios[0], Fraction(0)):
        return None
    return ratios[0]


def _equal_at(a: Node, b: Node, values: dict[str, Number]) -> bool:
    x, y = _evaluate_or_zero(a, values, DIGITS), _evaluate_or_zero(b, values, DIGITS)
    digits = DIGITS + max(0, _integer_digits(x), _integer_digits(y))
    if digits > DIGITS + 10 and not (isinstance(x, Fraction) and isinstance(y, Fraction)):
        x, y = _evaluate_or_zero(a, values, digits), _evaluate_or_zero(b, values, digits)
    return _close(x, y, digits)


def _close(x: Number, y: Number, digits: int = DIGITS) -> bool:
    """Compare fractions exactly, others to 40 decimal places, or to 40 significant digits below 1."""
    if isinstance(x, Fraction) and isinstance(y, Fraction):
        return x == y
    with mp.workdps(digits):
        x, y = _float(x), _float(y)
        if mp.isinf(x) or mp.isinf(y):
            return x == y
        return abs(x - y) <= min(mp.mpf(1), max(abs(x), abs(y))) * mp.mpf(10) ** -AGREED_DIGITS


def _integer_digits(x: Number) -> int:
    """Return the approximate number of digits before the decimal point."""
    if isinstance(x, Fraction):
        return (x.numerator.bit_length() - x.denominator.bit_length()) * 3 // 10
    return 0 if mp.isinf(x) or x == 0 else int(mp.log10(abs(x)))


def within(x: Number, y: Fraction, distance: Fraction) -> bool:
    """Return whether a number is real and at most `distance` from a rational."""
    if isinstance(x, Fraction):
        return abs(x - y) <= distance
    with mp.workdps(DIGITS):
        return mp.im(x) == 0 and abs(x - _float(y)) <= _float(distance)


def is_real(node: Node) -> bool:
    """Return whether an expression without symbols is a finite real number."""
    x = _float(evaluate(node, {}))
    return mp.im(x) == 0 and bool(mp.isfinite(x))


def is_above(a: Node, b: Node) -> bool:
    """Return whether one real number is greater than another. Both have no symbols."""
    x, y = evaluate(a, {}), evaluate(b, {})
    with mp.workdps(DIGITS):
        return bool(mp.re(_float(x)) > mp.re(_float(y)))


def evaluate(node: Node, values: dict[str, Number], digits: int = DIGITS) -> Number:
    """Return a Fraction where the form of the expression shows a rational value, else an mpmath number.

    Raises TooBig, Unreadable for a function outside its domain, ArithmeticError where there is no value.
    """
    with mp.workdps(digits):
        return _evaluate(node, values)


def _evaluate_or_zero(node: Node, values: dict[str, Number], digits: int) -> Number:
    """Return the value, or 0 for a tiny one that shrinks as digits are added: its terms cancel."""
    x = evaluate(node, values, digits)
    if isinstance(x, Fraction) or mp.isinf(x) or abs(x) > mp.mpf(10) ** (AGREED_DIGITS - DIGITS):
        return x
    finer = _float(evaluate(node, values, digits + 4 * DIGITS))
    return Fraction(0) if abs(finer) <= abs(x) * mp.mpf(10) ** (-3 * DIGITS) else x


def _evaluate(node: Node, values: dict[str, Number]) -> Number:
    kind = node[0]
    if kind == "num":
        return node[1]
    if kind == "sym":
        return values[node[1]]
    if kind == "const":
        return {"pi": +mp.pi, "e": +mp.e, "i": mp.mpc(0, 1), "infty": mp.inf}[node[1]]
    if kind == "apply":  # an unknown function: a fixed smooth one in its place
        argument = _float(_evaluate(node[2], values))
        return mp.cos(argument * _float(_value_at(node[1], 0)) + _float(_value_at(node[1], 1)))
    arguments = [_evaluate(n, values) for n in node[1:] if isinstance(n, tuple)]
    if kind != "neg" and any(not isinstance(v, Fraction) and mp.isinf(v) for v in arguments):
        raise TooBig("arithmetic with infinity")
    return _apply(kind, node, arguments)


def _apply(kind: str, node: Node, args: list[Number]) -> Number:
    exact = all(isinstance(v, Fraction) for v in args)
    if kind == "neg":
        return -args[0]
    if kind in ("add", "mul"):
        a, b = args if exact else map(_float, args)
        return _bounded(a + b if kind == "add" else a * b)
    if kind == "div":
        return _bounded(_divide(*args))
    if kind == "pow":
        return _power(*args)
    if kind == "fact":
        return Fraction(math.factorial(_natural(args[0], 3000)))
    if kind == "binom":
        return Fraction(math.comb(_natural(args[0], 20_000), _natural(args[1], 20_000)))
    return _function(node[1], args)


def _function(name: str, args: list[Number]) -> Number:
    x = args[0]
    if name == "root":
        return _power(x, _divide(Fraction(1), args[1]))
    if name == "abs":
        return abs(x)
    if name in ("max", "min") and all(isinstance(v, Fraction) for v in args):
        return max(args) if name == "max" else min(args)
    if name in ("gcd", "lcm"):
        numbers = [_natural(v, 10**300) for v in args]
        return Fraction(math.gcd(*numbers) if name == "gcd" else math.lcm(*numbers))
    if name in ("floor", "ceil"):
        if not isinstance(x, Fraction) and (mp.im(x) != 0 or abs(x) > 10**30):
            raise TooBig(name)
        return Fraction(int(math.floor(x) if name == "floor" else math.ceil(x)))
    if len(args) > 1 and name != "log":
        raise Unreadable(f"{name} of irrational numbers")
    x = _float(x)
    if abs(x) > mp.mpf(10) ** 12 and name not in ("ln", "log", "lg"):
        raise TooBig(name)
    if name in ("ln", "log", "lg"):
        if x == 0:
            raise ZeroDivisionError
        if len(args) > 1:
            return mp.log(x) / mp.log(_float(args[1]))
        return mp.log(x) / (mp.log(10) if name != "ln" else 1)
    table = {"arcsin": mp.asin, "arccos": mp.acos, "arctan": mp.atan, "exp": mp.exp}
    if name == "exp" and abs(x) > 10_000:
        raise TooBig(name)
    return table[name](x) if name in table else getattr(mp, name)(x)


def _power(base: Number, exponent: Number) -> Number:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction):
        if exponent.denominator == 1:
            size = max(base.numerator.bit_length(), base.denominator.bit_length())
            if abs(exponent) * size <= MAX_BITS:
                return base ** int(exponent)
        elif base > 0 and exponent.denominator <= 64 and abs(exponent.numerator) <= 64:
            root = _root(base, exponent.denominator)
            if root is not None:
                return _power(root, Fraction(exponent.numerator))
    base, exponent = _float(base), _float(exponent)
    if base == 0:
        if mp.re(exponent) <= 0:
            raise ZeroDivisionError
        return mp.mpf(0)
    if abs(exponent * mp.log(base)) > 50_000:
        raise TooBig("power")
    return mp.power(base, exponent)


def _root(x: Fraction, n: int) -> Fraction | None:
    """Return the exact n-th root of a positive rational, None if it is irrational."""
    if max(x.numerator.bit_length(), x.denominator.bit_length()) > MAX_BITS:
        return None
    parts = []
    for number in (x.numerator, x.denominator):
        root = math.isqrt(number) if n == 2 else _integer_root(number, n)
        if root**n != number:
            return None
        parts.append(root)
    return Fraction(*parts)


def _integer_root(number: int, n: int) -> int:
    low, high = 0, 1 << (number.bit_length() // n + 1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle**n <= number else (low, middle - 1)
    return low


def _divide(a: Number, b: Number) -> Number:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a / b
    b = _float(b)
    if abs(b) < mp.mpf(10) ** (8 - DIGITS):
        raise ZeroDivisionError
    return _float(a) / b


def _natural(x: Number, limit: int) -> int:
    if not isinstance(x, Fraction) or x.denominator != 1 or x < 0:
        raise Unreadable("not a whole number")
    if x > limit:
        raise TooBig("whole number")
    return int(x)


def _bounded(x: Number) -> Number:
    if isinstance(x, Fraction) and max(x.numerator.bit_length(), x.denominator.bit_length()) > 4 * MAX_BITS:
        raise TooBig("rational")
    return x


def _float(x: Number) -> Number:
    return mp.mpf(x.numerator) / x.denominator if isinstance(x, Fraction) else x


def _value_at(name: str, point: int) -> Fraction:
    """Return the value of a symbol at a point: positive at points 0 and 1, negative at 2, determined by its name."""
    digest = hashlib.sha256(f"{name}/{point}".encode(errors="replace")).digest()
    positive = Fraction(int.from_bytes(digest[:3]) % 99991 + 20011, 49999)
    return -positive if point == 2 else positive
