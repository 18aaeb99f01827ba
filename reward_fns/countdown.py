"""Countdown: reach a target with each given number used exactly once, by + - * / and brackets.

The expression is the content of the last `<answer>` block after the reasoning (`rlhf_pg.grading.reasoning`), else the
last line; what follows an `=` is ignored. The small parser below evaluates it in exact fractions; nothing is run as
code.
Reward: 1.0 for reaching the target, 0.1 for another valid expression of exactly the given numbers, else 0.0.
"""

import re
from fractions import Fraction

from rlhf_pg.grading.reasoning import after_reasoning, answer_block

MAX_CHARS, MAX_DEPTH = 200, 20
TOKEN = re.compile(r"\s*(?:(\d{1,9})|([-+*/()]))")
SIGNS = str.maketrans({"×": "*", "÷": "/", "−": "-", "·": "*"})


def countdown(completion: str, numbers: list, target: int, finish: str = "stop", prompt: str = "") -> dict:
    """Return the reward; outcome "unparseable" when there is no expression, "truncated" when it was cut off."""
    text = _expression(completion, finish, prompt)
    try:
        value, used = _sum(_tokens(text), 0) if text else (None, [])
    except (ValueError, ZeroDivisionError):
        value, used = None, []
    if not used:
        return {"reward": 0.0, "outcome": "truncated" if finish == "length" else "unparseable"}
    if sorted(used) != sorted(int(n) for n in numbers):
        return {"reward": 0.0, "outcome": "scored"}
    return {"reward": 1.0 if value == int(target) else 0.1, "outcome": "scored"}


def _expression(completion: str, finish: str, prompt: str) -> str:
    visible = after_reasoning(completion, prompt)
    block = None if visible is None else answer_block(visible)
    if visible is None or (block is None and finish == "length"):
        return ""
    lines = (visible if block is None else block).strip().splitlines()
    return (lines[-1] if lines else "").split("=")[0].translate(SIGNS).strip()


def _tokens(text: str) -> list[str]:
    if len(text) > MAX_CHARS:
        raise ValueError("too long")
    tokens, at = [], 0
    while at < len(text):
        match = TOKEN.match(text, at)
        if match is None:
            raise ValueError(f"unexpected {text[at]!r}")
        tokens.append(match[0].strip())
        at = match.end()
    return [*tokens, "end"]


def _sum(tokens: list[str], depth: int) -> tuple[Fraction, list[int]]:
    """Parse to the end at depth 0, else to the closing bracket. Returns the value and the numbers used."""
    value, used = _product(tokens, depth)
    while tokens[0] in "+-":
        sign = tokens.pop(0)
        right, more = _product(tokens, depth)
        value, used = (value + right if sign == "+" else value - right), used + more
    if tokens.pop(0) != (")" if depth else "end"):
        raise ValueError("brackets do not match")
    return value, used


def _product(tokens: list[str], depth: int) -> tuple[Fraction, list[int]]:
    value, used = _atom(tokens, depth)
    while tokens[0] in "*/":
        sign = tokens.pop(0)
        right, more = _atom(tokens, depth)
        value, used = (value * right if sign == "*" else value / right), used + more
    return value, used


def _atom(tokens: list[str], depth: int) -> tuple[Fraction, list[int]]:
    token = tokens.pop(0)
    if token == "(" and depth < MAX_DEPTH:
        return _sum(tokens, depth + 1)
    if not token.isdigit():
        raise ValueError(f"unexpected {token!r}")
    return Fraction(int(token)), [int(token)]
