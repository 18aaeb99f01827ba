r"""Numbers as people, models and data files write them, read as exact rationals. Nothing is evaluated.

`1,234.50`, `1\,000`, `1{,}000`, `1 000`, `1,00,000`, `2.5e16`, `5\times10^{-5}`, `10^5`, `\frac{1}{2}`, `2 1/2`, `-$3`,
`3 million`. What is more than one number (`18 - 3`, `18 or 20`, `2x`, `12:30`, `1.2.3`) and what has two meanings
(`3,14`, `1.000.000`) has no value. Time is linear in the length of the text; digits and exponents are bounded before
any arithmetic.
"""

from __future__ import annotations

import math
import re
import unicodedata
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

MAX_DIGITS, MAX_EXPONENT, MAX_POWER_BITS = 1_000, 1_000, 10_000
VULGAR = {c: rf"\frac{{{'}{'.join(unicodedata.normalize('NFKC', c).split('⁄'))}}}" for c in "¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"}
SIGNS = {
    **dict.fromkeys("−–‐‑‒﹣－", "-"), **dict.fromkeys("\u00a0\u2007\u2008\u2009\u200a\u202f\u205f", "\u2009"),
    **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u00ad"), **dict.fromkeys("€£¥₹₩₽₺₱฿¢＄￥", "$"),
    "\u3000": " ", "⁄": "/", "∕": "/", "٫": ".", "٬": ",", "’": "'", "∗": "*", "⋅": "·", "∙": "·", "×": "×",
}  # fmt: skip
FULL_WIDTH = {chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
ONE_SPELLING = str.maketrans(FULL_WIDTH | VULGAR | SIGNS)
SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
STYLE = re.compile(
    r"\\(?:text(?:bf|it|rm|tt|sf|normal)?|mbox|math(?:bf|rm|it|sf|tt)|boldsymbol|bm|mathop|displaystyle|left|right"
    r"|[bB]igg?[lr]?)(?![a-zA-Z])"
)
CURRENCY = re.compile(
    r"(?<![a-zA-Z])(?:US|CA|AU|NZ|HK|C|A|R|S)?\\?\$|(?<![a-zA-Z])(?:USD|EUR|GBP|INR|CAD|AUD|JPY|CNY|RMB|CHF|Rs\.?|RM)"
    r"(?=[ \u2009]?-?[\d.])"
)

SEPARATOR = r"(?:\{,\}|,\\!|\\[,;:! ]|[,'_~\u2009]|[ ](?=\d{3}(?!\d)))"
DECIMAL = rf"(?:\d++(?:{SEPARATOR}\d++)*+(?:\.\d++)?+|\.\d++)"
START = r"(?<![a-zA-Z\d.^])(?<!\^\{)(?<!\^-)(?<!\^\{-)(?<!\^\()(?<!_\{)(?<![a-zA-Z\d]_)(?<!frac\{)(?<!sqrt\{)(?<!\}\{)"
NUMBER = re.compile(
    rf"{START}(?P<sign>(?:(?<![\w).\]}}%])-)?(?:\$[ ]?(?:-[ ]?)?)?\{{?(?:(?<=\{{)-[ ]?)?)"
    rf"(?:\\[dtc]?frac\s*(?:\{{\s*(?P<top>-?{DECIMAL})\s*\}}|(?P<digit>\d))\s*(?:\{{\s*(?P<bottom>-?{DECIMAL})\s*\}}|(?P<d>\d))"
    rf"|(?P<number>{DECIMAL})"
    r"(?:[eE](?P<e>[+-]?\d++)(?![a-zA-Z\d]))?"
    rf"(?:\s?\\[dtc]?frac\s*(?:\{{\s*(?P<top2>\d++)\s*\}}|(?P<digit2>\d))\s*(?:\{{\s*(?P<bottom2>\d++)\s*\}}|(?P<d2>\d))"
    r"|[ ](?P<top3>\d{1,3})\s?/\s?(?P<bottom3>\d{1,4})(?![\d/])"
    rf"|\s?/\s?\$?(?P<under>{DECIMAL})"
    r"|\s*(?:\\times|\\cdot|[*xX×·])\s*10\s*(?:\^|\*\*)\s*[{(]?\s*(?P<ten>[+-]?\d++)\s*[})]?"
    r"|(?:\s*\^\s*|\*\*)[{(]?\s*(?P<power>-?\d++)\s*[})]?)?)\}?"
)  # fmt: skip
SPACED_MINUS = re.compile(r"(?:\A|[=(:{\[$#≈]|\bis|\bequals)[ \t*_]*-[ \t]\Z")
NEGATIVE = re.compile(r"(?:\bnegative|(?<![\d)%] )\bminus)\s+\Z", re.IGNORECASE)
DENIED = re.compile(r"(?:\bnot|n't)(?:\s+be)?\s+\Z", re.IGNORECASE)
PERCENT = re.compile(r"[\s$}]*\{?\s?(?:\\?%|(?:percent|per cent|pct)\b)", re.IGNORECASE)
FACTORS = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
           "k": 10**3, "m": 10**6, "b": 10**9}  # fmt: skip
FACTOR = re.compile(
    rf"\s*\}}?\$?\s?(?:\{{\s*)?({'|'.join(f for f in FACTORS if len(f) > 1)})s?\b|(?-i:[kKMB])(?![a-zA-Z])",
    re.IGNORECASE,
)
LARGER = "hours?|hrs?|h|minutes?|mins?|dollars?|bucks|feet|foot|ft|pounds?|lbs?|years?|weeks?|days?|meters?|m"
SMALLER = "minutes?|mins?|seconds?|secs?|cents?|inch|inches|in|ounces?|oz|months?|days?|hours?|cm"
OPERAND = r"[ \t$]*(?:[-\d(.√π]|\\[a-z])"
CONTINUED = re.compile(  # what follows a number that is not the whole answer
    "|".join(
        [
            rf"[ \t$}}]*(?:[-+*×÷·±]{OPERAND}|[<>≤≥≈=/][ \t$]*[-\d(]|[<>≤≥][ \t$]*[a-zA-Z]\b|\*\*[\d(]|[√π]|pi\b)",
            r"[ \t$}]*\\(?:times|cdot|div|pm|mp|sqrt|pi|frac|log|ln|sin|cos|tan|binom|over|overline)(?![a-zA-Z])",
            r"[ \t$}]*\^(?!\s*\{?\s*(?:\\circ|°))",
            r"[ \t]*and[ \t]+(?:a|one|two|three)[ \t-]+(?:half|third|quarter|fourth)",
            r"[ \t$}]*(?:[a-zA-Z]+[ \t]+){0,2}or[ \t$]+[-\d.]",
            r"[ ]?[xyz](?![a-zA-Z'])|[in](?![a-zA-Z'])|_\{?\d|[.:,']\d|\.?\\overline|\(\d",
            rf"[ ]?(?:{LARGER})[ ]?,?[ ]?(?:and[ ])?\d++[ ]?(?:{SMALLER})\b",
        ]
    )
)
OPERATOR_BETWEEN = re.compile(
    r":|[ \t$]*(?:[-+*×÷·/]|\\times|\\cdot|\\div)[ \t$]*|[ \t]*(?:[a-zA-Z]+[ \t]+){0,2}or[ \t]+"
)


@dataclass(frozen=True)
class Number:
    """A number in a text that `plain` returned. `value` None: it is part of something else, or unreadable."""

    value: Fraction | None
    percent: bool  # 50% has value 50
    start: int
    end: int


def plain(text: str) -> str:
    """Return the text in the spelling that `find` reads: ASCII digits and signs, `$` for any currency, no fonts."""
    text = text.translate(ONE_SPELLING)
    if not text.isascii():
        text = re.sub(r"(?![0-9])\d", lambda m: str(unicodedata.decimal(m[0])), text)
        text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+", lambda m: f"^{{{m[0].translate(SUPERSCRIPTS)}}}", text)
    return CURRENCY.sub("$", STYLE.sub("", text))


def first(text: str, start: int = 0, *, any_commas: bool = False) -> Number | None:
    """Return the number that begins at `start` of a plain text, None where none does."""
    match = NUMBER.match(text, start)
    return match and _number(text, match, any_commas)


def every(text: str, most: int) -> list[Number]:
    """Return the numbers in a plain text, at most `most` of them."""
    return [_number(text, match) for match, _ in zip(NUMBER.finditer(text), range(most))]  # noqa: B905


def last(text: str) -> Number | None:
    """Return the last number in a plain text. Without value, if an operand (`15 + 3`) or one of two (`3 or 4`)."""
    before = match = None
    for found in NUMBER.finditer(text):
        before, match = match, found
    if match is None:
        return None
    number = _number(text, match)
    if before is not None and OPERATOR_BETWEEN.fullmatch(text, before.end(), match.start()):
        return Number(None, number.percent, number.start, number.end)
    return number


def of_value(value: float | Decimal) -> Fraction:
    """Return the exact rational of a data value: a float is the shortest decimal that is the same float (0.1 is 1/10).

    Raises ValueError for what is no finite number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise ValueError(f"{value!r} is a {type(value).__name__}, not a number")
    return Fraction(as_text(value))


def as_text(value: str | float | Decimal) -> str:
    """Return a data value as text: a number as its exact decimals, without exponent. Raises ValueError for NaN."""
    if isinstance(value, float | Decimal):
        if not math.isfinite(value):
            raise ValueError(f"{value} is no number")
        exact = Decimal(repr(value)) if isinstance(value, float) else value
        if abs(exact.adjusted()) > MAX_EXPONENT:
            raise ValueError(f"{value} has more than {MAX_EXPONENT} digits")
        return str(value) if "e" not in str(value).lower() else format(exact, "f")
    return str(value)


def of_fraction(value: Fraction) -> str:
    """Return the decimals of a rational, or numerator/denominator where they never end."""
    places = next((n for n in range(MAX_EXPONENT) if 10**n % value.denominator == 0), None)
    if not places:
        return str(value)
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    return f"{'-' * (value < 0)}{digits[:-places]}.{digits[-places:]}"


def _number(text: str, match: re.Match, any_commas: bool = False) -> Number:
    percent = PERCENT.match(text, match.end())
    end = percent.end() if percent else match.end()
    value = _value(match, any_commas)
    factor = FACTOR.match(text, end)
    if value is not None and factor:
        value, end = value * FACTORS[(factor[1] or factor[0]).lower()], factor.end()
    before = text[max(0, match.start() - 16) : match.start()]
    if CONTINUED.match(text, end) or DENIED.search(before):
        value = None
    if value is not None and "-" not in match["sign"] and (SPACED_MINUS.search(before) or NEGATIVE.search(before)):
        value = -value
    return Number(value, percent is not None, match.start(), end)


def _value(match: re.Match, any_commas: bool) -> Fraction | None:
    """Return the rational a match spells, None for digits grouped in no known way and for what is too large."""
    try:
        if match["number"] is None:
            value = _decimal(match["top"] or match["digit"]) / _decimal(match["bottom"] or match["d"])
        else:
            value = _decimal(match["number"], any_commas) * _power_of_ten(match["e"]) * _power_of_ten(match["ten"])
            value = _combined(value, match)
    except (ValueError, ZeroDivisionError):
        return None
    return -value if match["sign"].count("-") == 1 else value


def _combined(value: Fraction, match: re.Match) -> Fraction:
    """Return a number with what follows it: `2 1/3` and `2\\frac13` are sums, `2/3` a quotient, `2^3` a power."""
    top = match["top2"] or match["digit2"] or match["top3"]
    if top:
        part = _decimal(top) / _decimal(match["bottom2"] or match["d2"] or match["bottom3"])
        if value.denominator != 1 or part >= 1:
            raise ValueError("a number beside a fraction")
        return value + part
    if match["under"]:
        return value / _decimal(match["under"])
    if match["power"]:
        exponent = _exponent(match["power"])
        if abs(exponent) * max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_POWER_BITS:
            raise ValueError("too large")
        return value**exponent
    return value


def _decimal(text: str, any_commas: bool = False) -> Fraction:
    """Return the value of digits in groups with an optional fraction. Raises ValueError."""
    if len(text) > 2 * MAX_DIGITS:
        raise ValueError("too many digits")
    negative, text = text.startswith("-"), text.lstrip("-")
    integer, _, decimals = text.partition(".")
    groups = re.split(SEPARATOR, integer)
    separators = {re.sub(r"[{}]|\\!", "", s) or "!" for s in re.findall(SEPARATOR, integer)}
    lengths = [len(g) for g in groups]
    by_threes = lengths[0] <= 3 and all(n == 3 for n in lengths[1:])
    by_twos = lengths[0] <= 2 and lengths[-1] == 3 and all(n == 2 for n in lengths[1:-1])  # 1,00,000
    is_grouped = len(separators) == 1 and integer[0] != "0" and (by_threes or (by_twos and separators == {","}))
    if len(groups) > 1 and not is_grouped and not (any_commas and separators == {","}):
        raise ValueError("not digits in groups of three")
    digits = "".join(groups) + decimals
    if len(digits) > MAX_DIGITS:
        raise ValueError("too many digits")
    value = Fraction(int(digits), 10 ** len(decimals))
    return -value if negative else value


def _power_of_ten(exponent: str | None) -> Fraction:
    return Fraction(10) ** _exponent(exponent) if exponent else Fraction(1)


def _exponent(text: str) -> int:
    if len(text) > 6 or abs(int(text)) > MAX_EXPONENT:
        raise ValueError("too large an exponent")
    return int(text)
