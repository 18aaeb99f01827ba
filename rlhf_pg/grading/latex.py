"""Answers as text: one spelling for what LaTeX and people write in many ways. Nothing is evaluated."""

from __future__ import annotations

import re

OPENING, CLOSING = "([{", ")]}"
UNICODE = {
    "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/", "∗": "*", "∞": r"\infty ",
    "π": r"\pi ", "θ": r"\theta ", "≤": r"\leq ", "≥": r"\geq ", "≠": r"\neq ", "±": r"\pm ", "∪": r"\cup ",
    "∩": r"\cap ", "∈": r"\in ", "≈": r"\approx ", "°": r"^\circ ", "√": r"\sqrt ", "²": "^2", "³": "^3", "¹": "^1",
    "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}",
    "∅": r"\emptyset ", "ℝ": r"\mathbb{R}", "\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u3000": " ", "’": "'",
    "，": ",", "。": ".", "\ufeff": "", "∖": r"\setminus ", "∉": r"\notin ",
}  # fmt: skip
FULL_WIDTH = {chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
TO_LATEX = str.maketrans(FULL_WIDTH | UNICODE)
SYNONYMS = {
    r"\\[dtc]frac": r"\frac", r"\\le": r"\leq", r"\\leqslant": r"\leq", r"\\ge": r"\geq", r"\\geqslant": r"\geq",
    r"\\ne": r"\neq", r"\\lt": "<", r"\\gt": ">", r"\\lvert|\\rvert|\\vert|\\mid": "|", r"\\colon": ":",
    r"\\varnothing": r"\emptyset", r"\\simeq": r"\approx", r"\\degree": r"^\circ", r"\\dots|\\cdots": r"\ldots",
    r"\\div": "/", r"\\ast": "*", r"\\tbinom|\\dbinom|\\choose": r"\binom", r"\\lbrace": r"\{", r"\\rbrace": r"\}",
    r"\\lbrack": "[", r"\\rbrack": "]", r"\\lparen": "(", r"\\rparen": ")", r"\\and|\\land|\\wedge": r"\text{and}",
    r"\\or|\\lor|\\vee": r"\text{or}", r"\\union": r"\cup", r"\\isin": r"\in", r"\\percent": r"\%",
    r"\\euro": "€", r"\\pounds": "£", r"\\R|\\Bbb\s*\{?R\}?|\\mathbb R|\\reals": r"\mathbb{R}", r"\\not\s*=": r"\neq",
    r"\\not\s*\\in": r"\notin", r"\\infin": r"\infty", r"\\inf": r"\infty",
}  # fmt: skip
SPACING = [
    (r"\\(?:left|right)\s*\.", ""),
    (r"\\(?:left|right|middle|[bB]igg?[lrm]?|displaystyle|textstyle|limits|nolimits|strut|rm|bf|it)(?![a-zA-Z])", ""),
    (r"(?<=\d),\s*\\!\s*(?=\d{3}(?!\d))", ""),
    (r"(?<=\d)(?:\s?\{,\s?\}|\\,|\\;|\\:|\\ |~|[ ])(?=\d{3}(?!\d))", ""),
    (r"(?<!\\)\\[,;:!> ]|~|\\(?:quad|qquad|hspace\{[^{}]*\}|enspace|phantom(?:\{[^{}]*\})?)(?![a-zA-Z])", " "),
]  # fmt: skip
TEXT_AND_SIGNS = [
    (r"\\(?:text(?:bf|it|rm|normal|sf|tt)?|mbox|hbox|textup|emph|mathrm|mathbf|mathsf|mathit|mathtt|operatorname\*?|"
     r"boldsymbol|bm|mathop)\s*\{([^{}]*)\}", r"\\text{\1}"),
    (r"(?:\^\{\s*\\circ\s*\}|\^\s*\\circ(?![a-zA-Z])|\\text\{\s*degrees?\s*\})", r"^\\circ "),
    (r"\\text\{\s*\(?([a-zA-Z])\)?\s*\}", r" \1 "),
    (r"\\text\{((?:\s*[A-Z]\s*,)+\s*[A-Z]\s*|\s*-?[\d.,]+\s*|\s*)\}", r" \1 "),
    (r"<=|=<", r"\\leq "),
    (r">=|=>", r"\\geq "),
    (r"!=|/=", r"\\neq "),
    (r"\*\*", "^"),
    (r"\+\s*(?=\\infty)", ""),
]  # fmt: skip
RULES = [  # in this order: spacing first, so that commands are alone; text and signs once commands have one name
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        *SPACING,
        *((rf"(?:{k})(?![a-zA-Z])", v.replace("\\", r"\\") + " " * v.startswith("\\")) for k, v in SYNONYMS.items()),
        *TEXT_AND_SIGNS,
    ]
]


def clean(text: str) -> str:
    """Return the text in one spelling: ASCII signs, plain brackets, no spaces in numbers, `\\text{...}` for any text.

    Commas stay, since what they separate depends on the other answer (`1,000`).
    """
    text = re.sub(r"√\s*(\d+)", r"\\sqrt{\1}", text).translate(TO_LATEX)
    if r"\begin" not in text:
        text = re.sub(r"\\\\(?=[a-zA-Z])", r"\\", text)  # escaped twice, as JSON printed by a program
    if len(re.findall(r"(?<!\\)\$", text)) % 2 == 0:
        text = re.sub(r"(?<!\\)\$", " ", text).strip()  # math signs; an odd one is currency
    for pattern, replacement in RULES:
        text = pattern.sub(replacement, text)
    return _strip_ends(re.sub(r"\s+", " ", text).strip())


def compact(text: str) -> str:
    """Return a cleaned text for comparison as a string: no `\\text`, no needless spaces and braces."""
    text = re.sub(r"\\text\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"(?<=[\^_])\{(\w)\}", r"\1", text)
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)|\\ ", "", text)


def _strip_ends(text: str) -> str:
    """Return the text without final punctuation and without braces or math signs around all of it."""
    while True:
        unstripped = text
        text = re.sub(r"(?:\\\\|[\s.,;:])+$", "", text).strip()
        text = re.sub(r"^(?:\\\(|\\\[|\$+)(.*?)(?:\\\)|\\\]|\$+)$", r"\1", text).strip()
        if text[:1] == "{" and matching_bracket(text, 0) == len(text) - 1:
            text = text[1:-1].strip()
        if text == unstripped:
            return text


def matching_bracket(text: str, start: int) -> int:
    """Return the index of the bracket that closes the one at `start`, -1 if none (`\\{` is not `{`)."""
    opening = text[start]
    closing = CLOSING[OPENING.index(opening)]
    depth = 0
    for i in range(start, len(text)):
        if text[i] in (opening, closing) and not (opening == "{" and i and text[i - 1] == "\\"):
            depth += 1 if text[i] == opening else -1
            if depth == 0:
                return i
    return -1


def split_outside_brackets(text: str, separator: str) -> list[str]:
    """Cut at every match of the pattern outside all brackets, which need not be of one kind (`[0,1)`)."""
    parts, start, depth = [], 0, 0
    for match in re.finditer(rf"(?P<separator>{separator})|[(\[{{]|[)\]}}]", text):
        if match["separator"]:
            if depth == 0:
                parts.append(text[start : match.start()])
                start = match.end()
        else:
            depth += 1 if match[0] in OPENING else -1
    return [p.strip() for p in [*parts, text[start:]]]
