"""Comparison by math-verify of what our parser cannot read: sums, integrals, limits, set operations, matrix products.

math-verify 0.9.0 can run forever and accepts some wrong answers. So it gets only short formulas without towers,
factorials or number bases, must run in a process that can be killed, and its yes counts only when both sides, as SymPy
objects, also agree to 30 digits at two points. Formulas go through its grammar, never through eval.
"""

from __future__ import annotations

import importlib
import re
from typing import Any

MAX_LENGTH, MAX_DEPTH = 300, 12
NEEDS_MATH_VERIFY = re.compile(
    r"\\(?:sum|prod|int|iint|lim|begin|cap|setminus|det|partial|nabla|pmod|bmod|overline|hat|vec)(?![a-zA-Z])"
)
UNSAFE = re.compile(r"!|\d{30}|[\^_]\s*\{?[^{}]*\d{3}|\d_|\^[^{}]*\^|\^\s*\{[^{}]*\^|\d[eE]\d|__|\\(?:text|mbox)")


def equal(gold: str, answer: str) -> bool:
    """Return whether math-verify and an independent evaluation both find the two cleaned answers the same."""
    if not (NEEDS_MATH_VERIFY.search(gold) or NEEDS_MATH_VERIFY.search(answer)) or not (
        _harmless(gold) and _harmless(answer)
    ):
        return False
    try:
        return _verified(gold, answer)
    except Exception:  # whatever the parser raises on a model's text, the answer is not accepted
        return False


def _verified(gold: str, answer: str) -> bool:
    import math_verify

    config = [math_verify.LatexExtractionConfig()]
    unlimited: Any = None  # its own limits need SIGALRM in the main thread; the caller's process is killed instead
    left, right = (
        math_verify.parse(f"${t}$", config, fallback_mode="no_fallback", parsing_timeout=unlimited)
        for t in (gold, answer)
    )
    if not left or not right or isinstance(left[0], str) or isinstance(right[0], str):
        return False
    if not math_verify.verify(left, right, timeout_seconds=unlimited):
        return False
    return _agree(left[0], right[0])


def _harmless(text: str) -> bool:
    depth = deepest = 0
    for char in text:
        depth += (char in "([{") - (char in ")]}")
        deepest = max(deepest, depth)
    return len(text) <= MAX_LENGTH and deepest <= MAX_DEPTH and not UNSAFE.search(text)


def _agree(left: Any, right: Any) -> bool:
    """Compare matrices and relations element by element, formulas by value, anything else for identity."""
    sympy: Any = importlib.import_module("sympy")
    if isinstance(left, sympy.MatrixBase) or isinstance(right, sympy.MatrixBase):
        if getattr(left, "shape", None) != getattr(right, "shape", None):
            return False
        left, right = (getattr(m, "as_explicit", lambda m=m: m)() for m in (left, right))
        return all(_agree(a, b) for a, b in zip(left, right, strict=True))
    if isinstance(left, sympy.core.relational.Relational):
        return type(left) is type(right) and _agree(left.lhs, right.lhs) and _agree(left.rhs, right.rhs)
    if not isinstance(left, sympy.Expr) or not isinstance(right, sympy.Expr):
        return left == right
    names = sorted(left.free_symbols | right.free_symbols, key=str)
    if left == right:
        return True
    for point in range(2):
        values = {n: sympy.Rational(1013 + 97 * i + 211 * point, 700 + 31 * i) for i, n in enumerate(names)}
        x, y = (sympy.N(e.subs(values).doit(), 50) for e in (left, right))
        if not (x.is_number and y.is_number) or not abs(x - y) <= max(abs(x), abs(y)) * sympy.Float(10) ** -30:
            return False
    return True
