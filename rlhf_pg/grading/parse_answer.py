"""Answers read into values: a number or formula with its unit, a tuple or interval, a set or list, and so on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from rlhf_pg.grading import expression
from rlhf_pg.grading.expression import Unreadable
from rlhf_pg.grading.latex import matching, split
from rlhf_pg.grading.units import split_unit

Kind = Literal["formula", "words", "tuple", "set", "list", "union", "matrix", "relation", "ratio", "based"]
RELATIONS = r"\\leq|\\geq|\\neq|\\approx|\\in(?![a-zA-Z])|\\equiv|<|>|="
JOINTS = r";|\\text\{\s*,?\s*(?:and|or)\s*\}|(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z])"
MAX_LENGTH, MAX_ITEMS = 1_000, 64  # characters of an answer, items of a compound


@dataclass(frozen=True)
class Value:
    """An answer, read. `items`: parts of a compound; `open`: brackets of a tuple, signs of a relation."""

    kind: Kind
    text: str
    items: tuple[Value, ...] = ()
    open: tuple[str, ...] = ()
    node: Any = None  # of a formula
    unit: str = ""
    width: int = 0  # columns of a matrix


def read(text: str, depth: int = 0) -> Value:
    """Read a cleaned answer. Raises Unreadable."""
    text = text.strip()
    if depth > 8 or not text:
        raise Unreadable("empty or nested too deeply")
    for reader in (_read_matrix, _read_list, _read_relation, _read_union, _read_bracketed, _read_ratio):
        found = reader(text, depth)
        if found is not None:
            return found
    return _read_simple(text)


def _read_list(text: str, depth: int) -> Value | None:
    parts = [q for p in split(text, JOINTS) for q in split(p, ",") if q]
    if len(parts) > MAX_ITEMS:
        raise Unreadable("too many items")
    if len(parts) < 2 and (text.count(r"\pm") != 1 or re.search(r"[=<>]", text) or r"\pm" not in _outside(text)):
        return None
    items = tuple(i for p in parts for i in _expand(p, depth))
    return Value("list", text, items) if len(items) > 1 else None


def _expand(text: str, depth: int) -> list[Value]:
    """`a \\pm b` is two values."""
    if text.count(r"\pm") == 1 and not re.search(r"[=<>,]", text):
        return [read(text.replace(r"\pm", sign).lstrip("+ "), depth + 1) for sign in "+-"]
    return [read(text, depth + 1)]


def _read_matrix(text: str, depth: int) -> Value | None:
    match = re.fullmatch(
        r"[\[(]?\s*\\begin\{(pmatrix|bmatrix|matrix|smallmatrix|array)\}(?:\{[^{}]*\})?(.*)\\end\{\1\}\s*[\])]?", text
    )
    if not match or r"\begin" in match[2]:
        return None
    rows = [r for r in re.split(r"\\\\", match[2].replace(r"\hline", "")) if r.strip()]
    cells = [[read(ungroup(c), depth + 1) for c in row.split("&")] for row in rows]
    if len({len(r) for r in cells}) != 1:
        raise Unreadable("a matrix with rows of different length")
    return Value("matrix", text, tuple(c for row in cells for c in row), width=len(cells[0]))


def _read_relation(text: str, depth: int) -> Value | None:
    parts = split(text, RELATIONS)
    if len(parts) == 1:
        return None
    signs = re.findall(RELATIONS, _outside(text))
    if "=" in signs and r"\approx" in signs:  # x = 1/3 \approx 0.333 states 1/3
        keep = signs.index(r"\approx")
        signs, parts = signs[:keep], parts[: keep + 1]
    if len(signs) != len(parts) - 1 or any(not p for p in parts):
        raise Unreadable("a relation without a side")
    return Value("relation", text, tuple(_side(p, depth) for p in parts), tuple(signs))


def _side(text: str, depth: int) -> Value:
    try:
        return read(text, depth + 1)
    except Unreadable:
        return Value("words", text)


def _outside(text: str) -> str:
    """The text with everything in brackets blanked."""
    out, depth = [], 0
    for char in text:
        depth -= char in ")]}"
        out.append(char if depth == 0 else " ")
        depth += char in "([{"
    return "".join(out)


def _read_union(text: str, depth: int) -> Value | None:
    parts = split(text, r"\\cup(?![a-zA-Z])")
    return Value("union", text, tuple(read(p, depth + 1) for p in parts)) if len(parts) > 1 else None


def _read_bracketed(text: str, depth: int) -> Value | None:
    if (
        text.startswith(r"\{")
        and text.endswith(r"\}")
        and matching(text.replace(r"\{", " {").replace(r"\}", " }"), 1) > 0
    ):
        inner = text[2:-2].strip()
        return Value("set", text, _items(inner, depth) if inner else ())
    angle = re.fullmatch(r"\\langle(.*)\\rangle", text)
    if angle:
        return Value("tuple", text, _items(angle[1], depth), ("(", ")"))
    if text[0] not in "([" or text[-1] not in ")]" or not _closes_at_end(text):
        return None
    items = _items(text[1:-1], depth)
    if len(items) < 2:
        return None
    return Value("tuple", text, items, (text[0], text[-1]))


def _closes_at_end(text: str) -> bool:
    depth = 0
    for i, char in enumerate(text):
        depth += (char in "([{") - (char in ")]}")
        if depth == 0 and i < len(text) - 1:
            return False
    return depth == 0


def _items(text: str, depth: int) -> tuple[Value, ...]:
    parts = split(text, rf",|{JOINTS}")
    if len(parts) > MAX_ITEMS:
        raise Unreadable("too many items")
    return tuple(i for p in parts for i in _expand(p, depth))


def _read_ratio(text: str, depth: int) -> Value | None:
    unit = re.search(r"\s*(?:\\text\{\s*)?([ap])\.?\s?m\b\.?\s*\}?$", text, re.IGNORECASE)
    body = text[: unit.start()] if unit else text
    parts = split(body, ":")
    if len(parts) == 1:
        return None
    return Value("ratio", body, tuple(_side(p, depth) for p in parts), unit=unit[1].lower() if unit else "")


def _read_simple(text: str) -> Value:
    based = re.fullmatch(r"(-?[0-9A-F]+)_(?:\{?\s*(?:\\text\{)?\s*(\w+)\s*\}{0,2})", text)
    if based:
        return Value("based", f"{based[1]}_{based[2].lower()}")
    if text in (r"\mathbb{R}", r"\mathbb R"):
        return read(r"(-\infty,\infty)")
    body, unit, factor = split_unit(text)
    try:
        node = expression.parse(body)
    except Unreadable:
        word = re.sub(r"\\text\{([^{}]*)\}", r"\1", text)
        if re.fullmatch(r"\(?\s*[a-zA-Z]\s*\)", word):
            return Value("words", re.sub(r"\W", "", word))
        if re.fullmatch(r"[a-zA-Z][\w' .\-]*", word) and (word != text or re.fullmatch(r"[a-zA-Z' .\-]{3,}", word)):
            return Value("words", re.sub(r"[\W_]", "", word).lower() if len(word) > 1 else word)
        raise
    return Value("formula", body, node=("mul", node, ("num", Fraction(factor), "")) if factor != 1 else node, unit=unit)


def ungroup(text: str) -> str:
    """Drop commas that group digits, when the whole is one number (with a name, sign, currency, unit)."""
    match = re.fullmatch(r"([^\d,()\[\]{}]*)(\d{1,3}(?:,\d{3})+)((?:\.\d+)?(?:[^,\d].*)?)", text)
    return match[1] + match[2].replace(",", "") + match[3] if match else text
