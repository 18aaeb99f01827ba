"""GSM8K: whether a completion ends in the number that the reference has.

Reference: a number, or a text with the number after the last `####`, line `A:` or in a box, or with one number alone.
Completion, after its reasoning (`rlhf_pg.grading.reasoning`), in its `<answer>` block if it has one: the last explicit
answer (`#### 18`, a line `A: 18`, `\\boxed{18}`, "answer is 18"); otherwise the last number of a finished text, unless
the text has GSM8K's calculator notation (`<<3*4=12>>`) or the reference is in `A:` form: then a solution without its
closing marker was cut off, and its last number is no answer.
Numbers are exact rationals (`rlhf_pg.grading.numbers` says how they may be written); currency and units do not matter.
`50%` is 50, and 1/2 where the reference has no percent sign; where that is below 1, only 1/2.
"""

import re
from fractions import Fraction

from rlhf_pg.grading import numbers, reasoning
from rlhf_pg.grading.latex import matching_bracket

MARK = re.compile(
    r"(?P<strict>####|^[ \t]*A[ \t]*:)|\\(?:boxed|fbox)\s*+(?=\{)(?P<box>)"
    r"|\b(?i:answer)[ \t*_]*+(?:is|equals|:|=)(?:[ \t]*:)?(?P<said>)",
    re.MULTILINE,
)
BEFORE = re.compile(r"(?:[ \t*_(\[$`\"'{]|\\[(\[])*+(?:- )?")
CHAIN = re.compile(
    r"(?:(?:[^a-zA-Z\n=\\]|\\(?:times|cdot|div|[dtc]?frac)(?![a-zA-Z])|(?<= )x(?= ))*+=)+|[ \t*_$]*\w{1,20}[ \t]*="
)
NO_OPERATOR = re.compile(r"\s*\+?(?:[^\\+*/^<>|!√π]|\\[$%,;: ()\[\]{}!]|\\approx|(?<!\d)\*\*)*\\?")
SUBTRACTS = re.compile(r"[\w)}]\s*-\s*\Z")
MAX_CHARS, MAX_BOX, MAX_CHAIN = 100_000, 300, 200


def gsm8k(completion: str, answer: str | float, finish: str = "stop", prompt: str = "") -> dict:
    """Return 1.0 where the numbers are equal, 0.0 otherwise. Raises ValueError for a reference without a number."""
    gold, gold_is_percent = _gold(answer)
    visible = reasoning.after_reasoning(completion, prompt)
    number = None if visible is None else _answer(visible[-MAX_CHARS:], finish == "stop", answer)
    if number is None or number.value is None:
        return {"reward": 0.0, "outcome": "truncated" if finish == "length" else "unparseable"}
    values = {number.value}
    if number.percent and not gold_is_percent:
        values = {number.value / 100} if abs(gold) < 1 else {number.value, number.value / 100}
    return {"reward": float(gold in values), "outcome": "scored"}


def _gold(answer: str | float) -> tuple[Fraction, bool]:
    """Return the reference's number and whether it is in percent. Raises ValueError."""
    if not isinstance(answer, str):
        return numbers.of_value(answer), False
    text = numbers.plain(answer)
    number = _marked(text, strict=True, any_commas=False) or numbers.last(text)
    if number is None or number.value is None:
        raise ValueError(f"the gold answer {answer[-80:]!r} contains no number, or one that can be read in two ways")
    return number.value, number.percent


def _answer(visible: str, finished: bool, answer: str | float) -> numbers.Number | None:
    block = reasoning.answer_block(visible)
    text = numbers.plain(visible if block is None else block)
    has_notation = "<<" in text
    number = _marked(text, strict=has_notation) or _alone(text)
    is_a_form = isinstance(answer, str) and re.search(r"^A:", answer, re.MULTILINE)
    if number is None and (finished or block is not None) and not has_notation and not is_a_form:
        number = numbers.last(text)
    return number


def _marked(text: str, strict: bool, any_commas: bool = True) -> numbers.Number | None:
    """Return the number after the last mark that has one, or in the last box; `strict`: "answer is" is no mark.

    `any_commas`: after `####` and `A:`, drop all commas between digits, as OpenAI's script does.
    """
    for mark in reversed(list(MARK.finditer(text))):
        if mark["box"] is not None:
            return _boxed(text[mark.end() :][:MAX_BOX])
        if strict and mark["said"] is not None:
            continue
        chain = CHAIN.match(text, mark.end(), mark.end() + MAX_CHAIN)
        start = BEFORE.match(text, chain.end() if chain else mark.end(), mark.end() + 2 * MAX_CHAIN)
        number = start and numbers.first(text, start.end(), any_commas=any_commas and mark["strict"] is not None)
        if number is not None:
            return number
    return None


def _boxed(text: str) -> numbers.Number:
    """Return the only number in a box, or right of its last `=`; one without value if there is more or less."""
    content = text[1 : max(1, matching_bracket(text, 0))].rpartition("=")[2]
    found = numbers.every(content, 2)
    before, after = (content[: found[0].start], content[found[0].end :]) if found else ("", "")
    if len(found) != 1 or not NO_OPERATOR.fullmatch(before) or SUBTRACTS.search(before) or after.startswith("!"):
        return numbers.Number(None, False, 0, 0)
    return found[0]


def _alone(text: str) -> numbers.Number | None:
    """Return the number that is the whole text, a full stop aside."""
    text = text.strip()
    number = numbers.first(text)
    return number if number is not None and not text[number.end :].strip(" .$*") else None
