"""Finds the answer in the text of a completion or a reference. Nothing is evaluated.

In order: an `<answer>` block, the last `\\boxed{}`, `#### x`, "(final) answer is x" and, in a text that was not cut
off, the last formula or the last number. Reasoning does not count (`reasoning`).
"""

from __future__ import annotations

import re

from rlhf_pg.grading.latex import matching_bracket
from rlhf_pg.grading.reasoning import after_reasoning, answer_block

TAIL = 20_000  # characters at the end of a completion that are searched
MAX_ANSWER = 1_000  # characters of an answer
MAX_BOXES = 12  # more different boxes than this are guesses, not an answer
BOX = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)")
MATH = re.compile(
    r"\$\$((?s:.{1,1000}?))\$\$|(?<![\\$])\$((?:[^$\n\\]|\\.){1,1000})\$"
    r"|(?<!\\)\\\(([^\n]{1,1000}?)\\\)|(?<!\\)\\\[((?s:.{1,1000}?))\\\]"
)
UNCLOSED = re.compile(r"(?<![$\\])(?:\$|\\\()[ \t]*\n")  # inline math does not run over lines
JOINT = re.compile(
    r"(?:\\?[\s,;&$.()\[\]]|\\quad|\\qquad|\\text\s*\{[\s,]*(?:and|or)?[\s,]*\}|and|or)*"
    r"|[^.\n]{0,40}\b(?:and|or)\b[\s$\\(\[{}]*"
)
MARKER = re.compile(r"(?:\b(?:final\s+)?answer\b\s*(?:is|:|=)+|\banswer\s+is\b)(?:\s*:)?\s*\**\s*", re.IGNORECASE)
HASHES = re.compile(r"####\s*([^\n]+)")
NUMBER = re.compile(
    r"(?<![\w.])[-−]?(?:[$€£]\s?)?[-−]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:/\d+)?(?:\s?(?:%|percent\b|pct\b))?"
)


def extract_answer(completion: str, finished: bool = True, prompt: str = "") -> str | None:
    """Return the answer of a completion, None if it gives none. `finished` is False if the text was cut off."""
    visible = after_reasoning(completion, prompt)
    if visible is None:
        return None
    has_boxes = BOX.search(visible) is not None  # also before the tail
    visible = visible[-TAIL:]
    block = answer_block(visible)
    if block is not None:
        return _limited(_marked(block) or ("" if BOX.search(block) else block))
    answer = _boxed(visible) if has_boxes else _marked(visible)
    if answer is None and finished and not has_boxes:
        answer = _bare_answer(visible) or _last_formula_or_number(visible)
    return _limited(answer) if answer else None


def extract_gold(reference: str) -> str:
    """Return the answer in a reference, which may be a bare answer, a formula between dollars or a full solution."""
    hashes = HASHES.search(reference)
    answer = _boxed(reference) or (hashes[1].strip() if hashes else None)
    if answer is None and len(reference) > 200:
        answer = extract_answer(reference)
    return (reference if answer is None else answer).strip()


def _marked(text: str) -> str | None:
    """Return the answer in a box, else after "####", else after "answer is". In a text with boxes only boxes count."""
    if BOX.search(text):
        return _boxed(text)
    hashes = HASHES.findall(text)
    return (hashes[-1].strip() if hashes else None) or _after_answer_is(text)


def _limited(text: str) -> str | None:
    text = text.strip()
    return text if 0 < len(text) <= MAX_ANSWER else None


def _boxed(text: str) -> str | None:
    """Return the content of the last box. Boxes side by side, or joined by "and", are one answer with several parts."""
    boxes: list[tuple[int, int, str]] = []
    for match in BOX.finditer(text):
        if boxes and match.start() < boxes[-1][1]:
            continue  # a box within a box
        end = matching_bracket(text[: match.end() + 2 * MAX_ANSWER], match.end())
        if end < 0:  # never closed: take the rest of the text if it is short
            end = len(text.rstrip("$ .\n"))
            if end <= match.end() or end - match.end() > 200:
                continue
        boxes.append((match.start(), end + 1, text[match.end() + 1 : end].strip()))
    if not boxes or len({b[2] for b in boxes}) > MAX_BOXES:
        return None
    joined = [boxes[-1]]
    for box in reversed(boxes[:-1]):
        between = text[box[1] : joined[0][0]]
        if len(between) > 60 or not JOINT.fullmatch(between):
            break
        joined.insert(0, box)
    return ", ".join(dict.fromkeys(b[2] for b in joined))


def _after_answer_is(text: str) -> str | None:
    matches = list(MARKER.finditer(text))
    if not matches:
        return None
    rest = text[matches[-1].end() :][:MAX_ANSWER].strip()
    sentence = _sentence(rest)
    verb = [m.end() for m in re.finditer(r"\b(?:is|are|equals)\s+(?=\S)", sentence)]
    if verb:
        sentence = sentence[verb[-1] :]
    formulas = list(MATH.finditer(sentence))
    if len(formulas) == 1 and len(sentence[: formulas[0].start()].split()) <= 3:
        return sentence if formulas[0].start() == 0 else _formula(formulas[0])
    numbers = [m[0] for m in NUMBER.finditer(sentence)]
    if not formulas and len(sentence.split()) > 3 and len(numbers) == 1:
        return numbers[0]
    return sentence or None


def _sentence(text: str) -> str:
    """Return the text up to the first full stop, line end or markup outside formulas and after a leading display."""
    display = re.match(r"\s*(?:\\\[|\$\$)", text)
    start = 0
    if display:
        formula = MATH.match(text, display.end() - 2)
        start = formula.end() if formula else 0
    for match in re.finditer(r"\$[^$\n]*\$|\\\(.*?\\\)|(?P<end>\n|\.(?=\s|$|<)|\*\*|<|$)", text[start:]):
        if match["end"] is not None:
            return text[: start + match.start()].strip()
    return text.strip()


def _formula(match: re.Match) -> str:
    return next(g for g in match.groups() if g is not None).strip()


def _bare_answer(text: str) -> str | None:
    """Return a text that is nothing but an answer: one word, or formulas and numbers with at most a unit."""
    text = text.strip()
    if len(text) > 200 or "\n" in text or MATH.search(text):
        return None
    words = re.findall(r"(?<![\\a-zA-Z])[a-zA-Z]{2,}", re.sub(r"\\(?:text|mbox|mathrm)\s*\{[^{}]*\}", "", text))
    is_answer = not words or re.fullmatch(r"[^a-zA-Z]*[\d})]\s?[a-zA-Z]+\.?|[a-zA-Z]+[.!]?", text)
    return text if is_answer and len(words) <= 1 else None


def _last_formula_or_number(text: str) -> str | None:
    """Return the last formula, or the last number if it stands after every formula."""
    formulas = list(MATH.finditer(text))
    end = formulas[-1].end() if formulas else 0
    numbers = [] if UNCLOSED.search(text) else [m[0] for m in NUMBER.finditer(text[end:])]
    if numbers:
        return numbers[-1].rstrip(",")
    return _formula(formulas[-1]) or None if formulas else None
