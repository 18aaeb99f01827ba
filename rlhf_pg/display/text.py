"""Text made safe to show."""

from __future__ import annotations

import unicodedata

HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})  # control, format (bidi, zero width), surrogate, separators
SHOWN = {"\n": "⏎", "\t": "⇥"}


def visible(text: str, keep: str = "") -> str:
    """Return `text` with a visible sign for every character that could act on a terminal or hide.

    Newline becomes ⏎, tab ⇥, and any other control or format character (escape, right-to-left override, zero width) its
    escape: \\x1b, \\u202e, \\u200b. Characters in `keep` stay as they are.
    """
    if text.isprintable():
        return text
    return "".join(c if c in keep or unicodedata.category(c) not in HIDDEN else _sign(c) for c in text)


def _sign(character: str) -> str:
    if character in SHOWN:
        return SHOWN[character]
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
