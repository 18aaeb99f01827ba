"""Parses an answer: a number or formula with its unit, a tuple or interval, a set or list, a relation and so on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from rlhf_pg.grading import expression
from rlhf_pg.grading.expression import Unreadable
from rlhf_pg.grading.latex import matching_bracket, split_outside_brackets
from rlhf_pg.grading.units import split_unit

Kind = Literal["formula", "words", "tuple", "set", "list", "union", "matrix", "relation", "ratio", "based"]
RELATIONS = r"\\leq|\\geq|\\neq|\\approx|\\in(?![a-zA-Z])|\\equiv|<|>|="
JOINTS = r";|\\text\{\s*,?\s*(?:and|or)\s*\}|(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z])"
MAX_LENGTH, MAX_ITEMS = 1_000, 64  # characters of an answer, items of a compound


@dataclass(frozen=True)
class Answer:
    """A parsed answer."""

    kind: Kind
    text: str
    items: tuple[Answer, ...] = ()  # of a compound, cells of a matrix row by row, sides of a relation or ratio
    brackets: tuple[str, ...] = ()  # of a tuple
    signs: tuple[str, ...] = ()  # of a relation, between its items
    node: Any = None  # of a formula
    unit: str = ""
    width: int = 0  # columns of a matrix


def parse_answer(text: str, depth: int = 0) -> Answer:
    """Parse a cleaned answer. Raises Unreadable."""
    text = text.strip()
    if depth > 8 or not text:
        raise Unreadable("empty or nested too deeply")
    for parse in (_parse_matrix, _parse_list, _parse_relation, _parse_union, _parse_bracketed, _parse_ratio):
        answer = parse(text, depth)
        if answer is not None:
            return answer
    return _parse_formula_or_words(text)


def _parse_list(text: str, depth: int) -> Answer | None:
    parts = [p for p in split_outside_brackets(text, rf"{JOINTS}|,") if p]
    if len(parts) > MAX_ITEMS:
        raise Unreadable("too many items")
    if len(parts) < 2 and (text.count(r"\pm") != 1 or re.search(r"[=<>]", text) or r"\pm" not in _outside(text)):
        return None
    items = tuple(i for p in parts for i in _expand(p, depth))
    return Answer("list", text, items) if len(items) > 1 else None


def _expand(text: str, depth: int) -> list[Answer]:
    """Parse one item; `a \\pm b` is two."""
    if text.count(r"\pm") == 1 and not re.search(r"[=<>,]", text):
        return [parse_answer(text.replace(r"\pm", sign).lstrip("+ "), depth + 1) for sign in "+-"]
    return [parse_answer(text, depth + 1)]


def _parse_matrix(text: str, depth: int) -> Answer | None:
    match = re.fullmatch(
        r"[\[(]?\s*\\begin\{(pmatrix|bmatrix|matrix|smallmatrix|array)\}(?:\{[^{}]*\})?(.*)\\end\{\1\}\s*[\])]?", text
    )
    if not match or r"\begin" in match[2]:
        return None
    rows = [r for r in re.split(r"\\\\", match[2].replace(r"\hline", "")) if r.strip()]
    cells = [[parse_answer(ungroup(c), depth + 1) for c in row.split("&")] for row in rows]
    if len({len(r) for r in cells}) != 1:
        raise Unreadable("a matrix with rows of different length")
    return Answer("matrix", text, tuple(c for row in cells for c in row), width=len(cells[0]))


def _parse_relation(text: str, depth: int) -> Answer | None:
    parts = split_outside_brackets(text, RELATIONS)
    if len(parts) == 1:
        return None
    signs = re.findall(RELATIONS, _outside(text))
    if "=" in signs and r"\approx" in signs:  # x = 1/3 \approx 0.333 states 1/3
        end = signs.index(r"\approx")
        signs, parts = signs[:end], parts[: end + 1]
    if len(signs) != len(parts) - 1 or any(not p for p in parts):
        raise Unreadable("a relation without a side")
    return Answer("relation", text, tuple(_side(p, depth) for p in parts), signs=tuple(signs))


def _side(text: str, depth: int) -> Answer:
    try:
        return parse_answer(text, depth + 1)
    except Unreadable:
        return Answer("words", text)


def _outside(text: str) -> str:
    """Return the text with everything in brackets blanked."""
    out, depth = [], 0
    for char in text:
        depth -= char in ")]}"
        out.append(char if depth == 0 else " ")
        depth += char in "([{"
    return "".join(out)


def _parse_union(text: str, depth: int) -> Answer | None:
    parts = split_outside_brackets(text, r"\\cup(?![a-zA-Z])")
    return Answer("union", text, tuple(parse_answer(p, depth + 1) for p in parts)) if len(parts) > 1 else None


def _parse_bracketed(text: str, depth: int) -> Answer | None:
    braces = text.startswith(r"\{") and text.endswith(r"\}")
    if braces and matching_bracket(text.replace(r"\{", " {").replace(r"\}", " }"), 1) > 0:
        inner = text[2:-2].strip()
        return Answer("set", text, _items(inner, depth) if inner else ())
    angle = re.fullmatch(r"\\langle(.*)\\rangle", text)
    if angle:
        return Answer("tuple", text, _items(angle[1], depth), ("(", ")"))
    if text[0] not in "([" or text[-1] not in ")]" or not _closes_at_end(text):
        return None
    items = _items(text[1:-1], depth)
    if len(items) < 2:
        return None
    return Answer("tuple", text, items, (text[0], text[-1]))


def _closes_at_end(text: str) -> bool:
    depth = 0
    for i, char in enumerate(text):
        depth += (char in "([{") - (char in ")]}")
        if depth == 0 and i < len(text) - 1:
            return False
    return depth == 0


def _items(text: str, depth: int) -> tuple[Answer, ...]:
    parts = split_outside_brackets(text, rf",|{JOINTS}")
    if len(parts) > MAX_ITEMS:
        raise Unreadable("too many items")
    return tuple(i for p in parts for i in _expand(p, depth))


def _parse_ratio(text: str, depth: int) -> Answer | None:
    unit = re.search(r"\s*(?:\\text\{\s*)?([ap])\.?\s?m\b\.?\s*\}?$", text, re.IGNORECASE)
    body = text[: unit.start()] if unit else text
    parts = split_outside_brackets(body, ":")
    if len(parts) == 1:
        return None
    return Answer("ratio", body, tuple(_side(p, depth) for p in parts), unit=unit[1].lower() if unit else "")


def _parse_formula_or_words(text: str) -> Answer:
    based = re.fullmatch(r"(-?[0-9A-F]+)_(?:\{?\s*(?:\\text\{)?\s*(\w+)\s*\}{0,2})", text)
    if based:
        return Answer("based", f"{based[1]}_{based[2].lower()}")
    if text in (r"\mathbb{R}", r"\mathbb R"):
        return parse_answer(r"(-\infty,\infty)")
    body, unit, factor = split_unit(text)
    try:
        node = expression.parse(body)
    except Unreadable:
        word = re.sub(r"\\text\{([^{}]*)\}", r"\1", text)
        if re.fullmatch(r"\(?\s*[a-zA-Z]\s*\)", word):
            return Answer("words", re.sub(r"\W", "", word))
        if re.fullmatch(r"[a-zA-Z][\w' .\-]*", word) and (word != text or re.fullmatch(r"[a-zA-Z' .\-]{3,}", word)):
            return Answer("words", re.sub(r"[\W_]", "", word).lower() if len(word) > 1 else word)
        raise
    if factor != 1:
        node = ("mul", node, ("num", Fraction(factor), ""))
    return Answer("formula", body, node=node, unit=unit)


def ungroup(text: str) -> str:
    """Drop commas that group digits if the text is one number (with a name, sign, currency, unit)."""
    match = re.fullmatch(r"([^\d,()\[\]{}]*)(\d{1,3}(?:,\d{3})+)((?:\.\d+)?(?:[^,\d].*)?)", text)
    return match[1] + match[2].replace(",", "") + match[3] if match else text
