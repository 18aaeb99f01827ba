"""GSM8K: whether a solution ends in the same number as the reference solution.

Reference: the number after the last `####` or line `A:`, or a bare number. Completion: the last explicit answer
(`#### 18`, a line `A: 18`, `\\boxed{18}`, "answer is 18") after any `<think>` block; otherwise the last number of a
finished text, unless the text has GSM8K's calculator notation (`<<3*4=12>>`) or the reference is in `A:` form: then a
solution without its closing marker was cut off, and its last number is no answer.
Numbers are compared as exact rationals: commas (anywhere, as in OpenAI's script), currency, units, percent signs and a
trailing dot do not matter.
"""

import re
from fractions import Fraction

DIGITS = r"\d(?:,?\d){0,59}"
SIGN = r"(?:(?<![\w).])[-−])?"  # not the minus of "5 - 3"
NUMBER = rf"{SIGN}(?:\\?[$€£]\s?{SIGN})?(?:{DIGITS}(?:\.\d{{1,60}})?|\.\d{{1,60}})(?:/\d{{1,60}})?(?!\d)"
MARK = r"####|^\s*A\s*:|\\boxed\s*\{"
BEFORE = r"[ \t*_(\[\\$]*"
STRICT = re.compile(rf"(?:{MARK}){BEFORE}({NUMBER})", re.MULTILINE)
EXPLICIT = re.compile(rf"(?:{MARK}|\b(?i:answer)\s*(?:is|:|=)(?:\s*:)?){BEFORE}({NUMBER})", re.MULTILINE)
ANY = re.compile(rf"(?<![\d.])({NUMBER})")
MAX_CHARS = 100_000


def gsm8k(completion: str, answer: str, finish: str = "stop") -> dict:
    """Return 1.0 where the numbers are equal, 0.0 otherwise. Raises ValueError for a reference without a number."""
    gold = _last(STRICT, str(answer)) or _last(ANY, str(answer))
    if gold is None:
        raise ValueError(f"the gold answer {str(answer)[:80]!r} contains no number")
    text = completion[-MAX_CHARS:].rpartition("</think>")[2]
    has_notation = "<<" in text
    number = _last(STRICT if has_notation else EXPLICIT, text) or _bare_number(text)
    if number is None and finish == "stop" and not has_notation and not re.search(r"^A:", str(answer), re.MULTILINE):
        number = _last(ANY, text)
    if number is None:
        return {"reward": 0.0, "outcome": "truncated" if finish == "length" else "unparseable"}
    return {"reward": float(_value(number) == _value(gold)), "outcome": "scored"}


def _last(pattern: re.Pattern, text: str) -> str | None:
    matches = pattern.findall(text)
    return matches[-1] if matches else None


def _bare_number(text: str) -> str | None:
    match = re.fullmatch(rf"\s*({NUMBER})\s*[.%]?\s*", text)
    return match[1] if match else None


def _value(number: str) -> Fraction | None:
    try:
        return Fraction(re.sub(r"[\s,$€£\\]", "", number).replace("−", "-"))
    except (ValueError, ZeroDivisionError):
        return None
