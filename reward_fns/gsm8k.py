"""GSM8K's verdict: is the number a solution ends in the number the worked gold ends in?

Gold: the number after the last `####` or line `A:`, or a bare number. Prediction: the last explicit answer (`#### 18`,
a line `A: 18`, `\\boxed{18}`, "answer is 18"), searched after any `<think>` block; otherwise the last number of a
finished text, unless the text is in GSM8K's own notation (`<<3*4=12>>`) or the gold in `A:` form: there a solution
without its closing marker was cut off, and its last number is no answer.
Numbers are compared as exact rationals: commas (wherever they stand, as in OpenAI's own script), currency, units,
percent signs and a trailing dot do not matter.
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
    """1.0 where the numbers are equal, 0.0 otherwise; a gold without a number is an error."""
    gold = _last(STRICT, str(answer)) or _last(ANY, str(answer))
    if gold is None:
        raise ValueError(f"the gold answer {str(answer)[:80]!r} contains no number")
    text = completion[-MAX_CHARS:].rpartition("</think>")[2]
    notation = "<<" in text
    found = _last(STRICT if notation else EXPLICIT, text) or _bare(text)
    if found is None and finish == "stop" and not notation and not re.search(r"^A:", str(answer), re.MULTILINE):
        found = _last(ANY, text)
    if found is None:
        return {"reward": 0.0, "outcome": "truncated" if finish == "length" else "unparseable"}
    return {"reward": float(_value(found) == _value(gold)), "outcome": "scored"}


def _last(pattern: re.Pattern, text: str) -> str | None:
    found = None
    for match in pattern.finditer(text):
        found = match[1]
    return found


def _bare(text: str) -> str | None:
    match = re.fullmatch(rf"\s*({NUMBER})\s*[.%]?\s*", text)
    return match[1] if match else None


def _value(number: str) -> Fraction | None:
    try:
        return Fraction(re.sub(r"[\s,$€£\\]", "", number).replace("−", "-"))
    except (ValueError, ZeroDivisionError):
        return None
