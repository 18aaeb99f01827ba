r"""Sets of real numbers: `\mathbb{R} \setminus \{2\}`, `(-\infty,2)\cup(2,\infty)`, `x \neq 2`, `\{x \mid x \neq 2\}`.

A set is a tree over bounds that are numbers. Two sets are the same when they hold the same of the cells into which the
bounds of both cut the line: each bound, and each gap between neighbours.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cmp_to_key
from itertools import pairwise

from rlhf_pg.grading import expression, numeric
from rlhf_pg.grading.expression import Node, Unreadable
from rlhf_pg.grading.latex import matching_bracket, split_outside_brackets

Tree = (
    tuple  # ("all",) | ("interval", low, closed, high, closed) | ("points", Node, ...) | ("or" | "and" | "minus", ...)
)
NEGATED = {"<": ">", ">": "<", r"\leq": r"\geq", r"\geq": r"\leq"}
SIGN = r"\\leq|\\geq|\\neq|\\notin(?![a-zA-Z])|\\in(?![a-zA-Z])|<|>|="
REALS = re.compile(r"\\mathbb\s*\{?\s*R\s*\}?|\(\s*-\s*\\infty\s*,\s*\\infty\s*\)")
WORDS = re.compile(
    r"(?:(?P<name>[a-z]) is )?(?:the set of )?(?:all|any|every) reals?"
    r"(?: numbers?| values?)?(?: (?:of )?(?P<name2>[a-z]))?"
    r"(?: (?:except|but|excluding|other than|besides|with|such that|where)(?: for| that)? (?P<rest>.*))?", re.IGNORECASE
)  # fmt: skip
MINUS = r"\\(?:setminus|smallsetminus|backslash)(?![a-zA-Z])|-"
MAX_PARTS, MAX_DEPTH = 32, 6


@dataclass(frozen=True)
class RealSet:
    """A set of reals as an answer states it."""

    tree: Tree
    name: str = ""  # of the variable, "" where the notation has none
    notation: str = ""  # "interval" for a single one, "relation" for inequalities without braces, else ""


def equal(gold: str, answer: str) -> bool:
    r"""Return whether two cleaned answers are the same set of reals; False where one of them is none.

    Inequalities for a gold that is one interval do not count: interval notation was asked for.
    """
    left, right = parse(gold), parse(answer)
    if left is None or right is None or {left.notation, right.notation} == {"interval"}:
        return False
    if left.name and right.name and left.name != right.name:
        return False
    if left.notation == "interval" and right.notation == "relation":
        return False
    bounds = _sorted_bounds([*_bounds(left.tree), *_bounds(right.tree)])
    return _cells(left.tree, bounds) == _cells(right.tree, bounds)


def parse(text: str) -> RealSet | None:
    """Return the set that a cleaned answer states, None where it states none, or with bounds that are no numbers."""
    try:
        return _parse(text.strip(), 0)
    except (Unreadable, expression.TooBig, ArithmeticError):
        return None


def _parse(text: str, depth: int) -> RealSet | None:
    if depth > MAX_DEPTH or not text:
        raise Unreadable("empty or nested too deeply")
    words = WORDS.fullmatch(" ".join(re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text).split()))
    if words:
        return _described(words, depth)
    for read in (_set_of, _relations, _operation, _interval):
        found = read(text, depth)
        if found is not None:
            return found
    return RealSet(("all",)) if REALS.fullmatch(text) else None


def _described(words: re.Match, depth: int) -> RealSet | None:
    """Return the set in "all real numbers x except 2", whose rest is a condition or points."""
    name, rest = words["name"] or words["name2"] or "", words["rest"]
    if not rest:
        return RealSet(("all",), name)
    excludes = re.search(r"\b(?:except|but|excluding|other than|besides)\b", words[0], re.IGNORECASE) is not None
    condition = _relations(rest, depth + 1)
    if condition is None:
        if not excludes:
            return None
        return RealSet(("minus", ("all",), _points(re.sub(r"\band\b", ",", rest))), name)
    is_equation = "=" in re.findall(SIGN, rest)
    if (name and condition.name != name) or (excludes and not is_equation and r"\neq" not in rest):
        return None
    return RealSet(("minus", ("all",), condition.tree) if is_equation else condition.tree, condition.name)


def _set_of(text: str, depth: int) -> RealSet | None:
    r"""Return the set in `\{x \in S \mid condition\}`."""
    builder = re.fullmatch(r"\\\{\s*([a-zA-Z])\s*(?:\\in\s*([^|:]*?))?\s*[|:](.*)\\\}", text)
    if builder is None:
        return None
    condition = _parse(builder[3].strip(), depth + 1)
    domain = _parse(builder[2], depth + 1) if builder[2] else RealSet(("all",))
    if condition is None or domain is None or condition.name != builder[1]:
        return None
    return RealSet(("and", domain.tree, condition.tree), builder[1])


def _relations(text: str, depth: int) -> RealSet | None:
    """Return the set of a condition on one variable: relations joined by "or", by "and", or by commas."""
    joint = r"\\text\{{\s*,?\s*{0}\s*\}}|(?<![a-zA-Z\\]){0}(?![a-zA-Z])"
    for word in ("or", "and"):
        parts = split_outside_brackets(text, joint.format(word))
        if len(parts) > 1:
            read = [_relations(p.strip(" ,"), depth + 1) for p in parts] if len(parts) <= MAX_PARTS else [None]
            return _joined(word, [r for r in read if r], len(read))
    parts = [p for p in split_outside_brackets(text, r"[,;]") if p]
    if len(parts) > MAX_PARTS:
        return None
    read: list[RealSet | None] = []
    for part in parts:
        relation = _relation(part, depth)
        if relation is None and read and read[-1] and r"\neq" in text:  # x \neq 1, 2
            relation = RealSet(("minus", ("all",), _points(part)), read[-1].name, "relation")
        read.append(relation)
    if len(read) == 1:
        return read[0]
    both = _joined("and", [r for r in read if r], len(read))
    if both is None or _cells(both.tree, _sorted_bounds(list(_bounds(both.tree)))):
        return both
    return _joined("or", [r for r in read if r], len(read))


def _joined(word: str, sets: list[RealSet], count: int) -> RealSet | None:
    if len(sets) < count or len({s.name for s in sets}) != 1:
        return None
    return RealSet((word, *(s.tree for s in sets)), sets[0].name, "relation")


def _relation(text: str, depth: int) -> RealSet | None:
    r"""Return the set of `x < 2`, `1 < x \leq 2`, `x \neq 2` or `x \in S`."""
    signs, sides = re.findall(SIGN, text), [s.strip() for s in re.split(SIGN, text)]
    names = [i for i, side in enumerate(sides) if re.fullmatch(r"[a-zA-Z]", side)]
    if len(signs) not in (1, 2) or len(names) != 1:
        return None
    at, name = names[0], sides[names[0]]
    if signs in ([r"\in"], [r"\notin"]) and at == 0:
        inner = _parse(sides[1], depth + 1) or _listed(sides[1])
        if inner is None or inner.notation == "relation":
            return None
        if signs[0] == r"\in":
            return RealSet(inner.tree, name, inner.notation)
        return RealSet(("minus", ("all",), inner.tree), name, "relation")
    if signs in ([r"\neq"], ["="]):
        points = _points(sides[1 - at])
        return RealSet(points if signs == ["="] else ("minus", ("all",), points), name, "relation")
    if any(s not in NEGATED for s in signs) or (len(signs) == 2 and at != 1):
        return None
    trees = []
    for i, sign in enumerate(signs):
        bound, sign = (sides[i + 1], sign) if i >= at else (sides[i], NEGATED[sign])
        node, closed = _bound(bound), "eq" in sign
        trees.append(("interval", *((node, closed) if ">" in sign or "g" in sign else (None, False)),
                      *((node, closed) if "<" in sign or "l" in sign else (None, False))))  # fmt: skip
    return RealSet(("and", *trees), name, "relation")


def _operation(text: str, depth: int) -> RealSet | None:
    for pattern, word in ((r"\\cup(?![a-zA-Z])", "or"), (r"\\cap(?![a-zA-Z])", "and"), (MINUS, "minus")):
        parts = split_outside_brackets(text, pattern)
        if 1 < len(parts) <= MAX_PARTS and all(parts) and not (word == "minus" and len(parts) > 2):
            sets = [_parse(p, depth + 1) or _listed(p) for p in parts]
            trees = [s.tree for s in sets if s is not None and s.notation != "relation"]
            return RealSet((word, *trees)) if len(trees) == len(parts) else None
    return None


def _listed(text: str) -> RealSet | None:
    r"""Return the points of `\{1, 2\}`."""
    braces = re.fullmatch(r"\\\{(.*)\\\}", text)
    return RealSet(_points(braces[1])) if braces else None


def _interval(text: str, depth: int) -> RealSet | None:
    if text[0] not in "([" or text[-1] not in ")]" or depth > MAX_DEPTH:
        return None
    sides = split_outside_brackets(text[1:-1], ",")
    if len(sides) != 2:
        if text[0] == "(" and text[-1] == ")" and matching_bracket(text, 0) == len(text) - 1:
            return _parse(text[1:-1].strip(), depth + 1)
        return None
    low, high = (_bound(s) for s in sides)
    return RealSet(("interval", low, text[0] == "[", high, text[-1] == "]"), notation="interval")


def _points(text: str) -> Tree:
    nodes = []
    for item in split_outside_brackets(text, r"[,;]|\\text\{\s*,?\s*and\s*\}|(?<![a-zA-Z\\])and(?![a-zA-Z])"):
        signed = [item.replace(r"\pm", sign) for sign in "+-"] if item.count(r"\pm") == 1 else [item]
        nodes += [_bound(s) for s in signed if s]
    if not nodes or None in nodes or len(nodes) > MAX_PARTS:
        raise Unreadable("no points")
    return ("points", *nodes)


def _bound(text: str) -> Node | None:
    """Return a bound as an expression that has a real value, None for plus or minus infinity. Raises Unreadable."""
    if re.fullmatch(r"[-+]?\s*\\infty", text.strip()):
        return None
    node = expression.parse(text)
    if expression.symbols(node) or not numeric.is_real(node):
        raise Unreadable("a bound that is no real number")
    return node


def _bounds(tree: Tree) -> Iterator[Node]:
    if tree[0] in ("interval", "points"):
        yield from (node for node in tree[1:] if isinstance(node, tuple))
    else:
        for part in tree[1:]:
            yield from _bounds(part)


def _sorted_bounds(nodes: list[Node]) -> list[Node]:
    """Return the distinct values in order."""

    def order(a: Node, b: Node) -> int:
        return 0 if numeric.equal(a, b) else (1 if numeric.is_above(a, b) else -1)

    ordered = sorted(nodes, key=cmp_to_key(order))
    return [*ordered[:1], *(b for a, b in pairwise(ordered) if not numeric.equal(a, b))]


def _cells(tree: Tree, bounds: list[Node]) -> set[int]:
    """Return the cells in a set: 2 i + 1 is the bound i, 2 i the gap before it, 2 n the gap after the last."""

    def place(node: Node) -> int:
        return 2 * next(i for i, bound in enumerate(bounds) if numeric.equal(bound, node)) + 1

    line = set(range(2 * len(bounds) + 1))
    if tree[0] == "all":
        return line
    if tree[0] == "points":
        return {place(node) for node in tree[1:]}
    if tree[0] == "interval":
        low, low_closed, high, high_closed = tree[1:]
        start = 0 if low is None else place(low) + (not low_closed)
        end = 2 * len(bounds) if high is None else place(high) - (not high_closed)
        return set(range(start, end + 1))
    first, *others = (_cells(part, bounds) for part in tree[1:])
    for other in others:
        first = first | other if tree[0] == "or" else first & other if tree[0] == "and" else first - other
    return first
