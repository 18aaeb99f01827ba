"""Are two mathematical answers the same? Exact where possible, and in doubt no: a wrong accept costs more.

An answer is read into a `Value`: a number or formula with its unit, a tuple or interval, a set or list, a union, a
matrix, an equation, a ratio, or words. Values are compared part by part; formulas by `evaluate.same`. What this reader
does not know goes to math-verify (`symbolic`), behind guards.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from rlhf_pg.rewards import evaluate, expression, symbolic
from rlhf_pg.rewards.expression import TooBig, Unreadable
from rlhf_pg.rewards.latex import clean, matching, split, squeeze

Kind = Literal["formula", "words", "tuple", "set", "list", "union", "matrix", "relation", "ratio", "based"]
RELATIONS = r"\\leq|\\geq|\\neq|\\approx|\\in(?![a-zA-Z])|\\equiv|<|>|="
JOINTS = r";|\\text\{\s*,?\s*(?:and|or)\s*\}|(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z])"
MAX_LENGTH, MAX_ITEMS = 1_000, 64
MULTIPLIERS = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
UNITS = {
    "%": "% percent percents percentage pct", "°": "° deg degree degrees", "$": "$ dollar dollars usd",
    "cent": "¢ cent cents", "€": "€ euro euros eur", "£": "£ pound sterling",
    "mm": "mm millimeter millimeters millimetre millimetres", "cm": "cm centimeter centimeters centimetre centimetres",
    "m": "m meter meters metre metres", "km": "km kilometer kilometers kilometre kilometres",
    "in": "in inch inches", "ft": "ft foot feet", "yd": "yd yard yards", "mi": "mi mile miles",
    "s": "s sec secs second seconds", "min": "min mins minute minutes", "h": "h hr hrs hour hours",
    "day": "day days", "week": "week weeks", "month": "month months", "year": "yr yrs year years",
    "g": "g gram grams", "kg": "kg kilogram kilograms", "mg": "mg milligram milligrams", "lb": "lb lbs pound pounds",
    "oz": "oz ounce ounces", "L": "l liter liters litre litres", "mL": "ml milliliter milliliters",
    "mph": "mph", "unit": "unit units", "radian": "rad rads radian radians",
}  # fmt: skip
UNIT = {spelling: unit for unit, spellings in UNITS.items() for spelling in spellings.split()}
NOT_UNITS = set(
    [
        "or",
        "and",
        "not",
        "no",
        "is",
        "isn't",
        "than",
        "less",
        "more",
        "about",
        "approximately",
        "between",
        "from",
        "to",
        "if",
        "when",
        "except",
    ]
)


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
    pairs = [(_thousands(gold), _thousands(answer))]
    decimal = re.fullmatch(r"(\D{0,3})(\d+),(\d+)(\D.{0,10})?", answer)
    if decimal and re.fullmatch(r"-?\d+\.\d+", gold):
        pairs.append((gold, f"{decimal[2]}.{decimal[3]}"))
    comma = re.fullmatch(r"(\d+),(\d{1,2}|\d{4,})", gold)
    if comma and re.fullmatch(r"\d+\.\d+", answer):
        pairs.append((f"{comma[1]}.{comma[2]}", answer))
    return pairs


def _thousands(text: str) -> str:
    """Drop commas that group digits, when the whole is one number (with a name, sign, currency, unit)."""
    match = re.fullmatch(r"([^\d,()\[\]{}]*)(\d{1,3}(?:,\d{3})+)((?:\.\d+)?(?:[^,\d].*)?)", text)
    return match[1] + match[2].replace(",", "") + match[3] if match else text


# ---- reading


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
    cells = [[read(_thousands(c), depth + 1) for c in row.split("&")] for row in rows]
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
    body, unit, factor = _unit(text)
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


def _unit(text: str) -> tuple[str, str, int]:
    """(formula, canonical unit or "", factor): `5\\text{ cm}^2`, `\\$5`, `5\\%`, `5 million dollars`."""
    unit, factor = "", 1
    match = re.match(r"^(-?)\s*(?:\\?\$|(€|£))\s*(?=[\d.\\-])", text)
    if match:
        text, unit = match[1] + text[match.end() :], match[2] or "$"
    while True:
        match = (
            re.search(r"\\text\{\s*([^{}]*?)\s*\}\s*(\^\s*\{?\s*[23]\s*\}?)?$", text)
            or re.search(r"(?<=[\d}) ])\s*([a-zA-Z]{2,}\.?)\s*(\^\s*\{?\s*[23]\s*\}?)?$", text)
            or re.search(r"(?<=[\d.]) ?([msgLh])(\^\s*\{?\s*[23]\s*\}?)$", text)
            or re.search(r"\s*(\\?%|\\?\$|€|£|\^\\circ)\s*()$", text)
        )
        if not match or not text[: match.start()].strip():
            return text.strip(), unit, factor
        bare = not match[0].startswith(r"\text")
        word = match[1].strip().rstrip(".").replace("\\", "").replace("^circ", "°")
        if word.lower() in MULTIPLIERS and factor == 1:
            factor = MULTIPLIERS[word.lower()]
        else:
            name = _unit_name(word, bare)
            if name is None:
                return text.strip(), unit, factor
            power = re.sub(r"\D", "", match[2] or "")
            unit = f"{name}{power} {unit}".strip()
        text = text[: match.start()].strip()


def _unit_name(words: str, bare: bool) -> str | None:
    """The canonical unit, None if the words are not a unit (bare letters must be a known one)."""
    parts = words.lower().split()
    if bare:
        return UNIT.get(words.lower())
    if not parts or len(parts) > 4 or set(parts) & NOT_UNITS or set(parts) & set(MULTIPLIERS):
        return None
    if any(not re.fullmatch(r"[a-zµ./°%'-]+", p) for p in parts):
        return None
    power = {"square": "2", "sq": "2", "squared": "2", "cubic": "3", "cubed": "3"}
    names = [UNIT.get(p, p.removesuffix("s")) for p in parts if p not in power]
    return " ".join(names) + "".join(power[p] for p in parts if p in power)


# ---- comparing


def _same(gold: Value, answer: Value) -> bool:
    """Part by part; see docs/rewards.md for which kinds may meet."""
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
    return value.open == (r"\in",) and _is_name(value.items[0])


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
    if evaluate.same(gold.node, answer.node):
        return not (percent < 0 and _below_one(gold))
    if percent:
        whole = gold if percent > 0 else answer
        hundredth = ("div", whole.node, ("num", Fraction(100), "100"))
        return evaluate.same(hundredth, (answer if percent > 0 else gold).node)
    return _rounded(gold, answer)


def _below_one(value: Value) -> bool:
    try:
        return abs(evaluate.value(value.text)) < 1
    except (Unreadable, TooBig, ArithmeticError, TypeError):
        return False


def _rounded(gold: Value, answer: Value) -> bool:
    """A decimal of at least 8 places, rightly rounded or cut, may stand for a number that has no finite decimal."""
    decimal = answer.text.strip()
    if not re.fullmatch(r"-?\d*\.\d{8,}", decimal):
        return False
    if expression.symbols(gold.node):
        return False
    exact = evaluate.evaluate(gold.node, {})
    if isinstance(exact, Fraction) and re.fullmatch(r"[25]*", _factors(exact.denominator)):
        return False
    half = Fraction(1, 2 * 10 ** len(decimal.partition(".")[2]))
    return evaluate.within(exact, Fraction(decimal), 2 * half)


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
    factor = evaluate.proportional(a, b)
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
