"""Where a completion's reasoning ends: the one rule about `<think>` for every reward that reads an answer.

A block opens with `<think>` (or `<thinking>`, `<thought>`, `<reasoning>`, `[THINK]`, in any case) and ends with the
closing tag of its own name; tags inside an open block are text. What follows the last closed block counts. In a block
that is never closed nothing counts. A closing tag without an opening one ends reasoning that the prompt began.
"""

from __future__ import annotations

import re

TAG = re.compile(r"<(/?)\s*(think|thinking|thought|reasoning)\s*>|\[(/?)(think)\]", re.IGNORECASE)
OPENED_AT_END = re.compile(rf"(?:{TAG.pattern})\s*\Z", re.IGNORECASE)


def after_reasoning(completion: str, prompt: str = "") -> str | None:
    """Return the part of a completion that may hold its answer; None when its reasoning never ends."""
    name, start = None, 0
    text = opened_by(prompt) + completion
    for tag in TAG.finditer(text):
        closes, tag_name = bool(tag[1] or tag[3]), (tag[2] or f"[{tag[4]}]").lower()
        if closes and name in (None, tag_name):
            name, start = None, tag.end()
        elif not closes and name is None:
            name = tag_name
    return None if name else text[start:]


def opened_by(prompt: str) -> str:
    """Return the opening tag a prompt ends with, as a template writes it that begins the reasoning; else ""."""
    end = OPENED_AT_END.search(prompt[-200:])
    return end[0].rstrip() if end and not (end[1] or end[3]) else ""


def answer_block(text: str) -> str | None:
    """Return the content of the last closed `<answer>` block of a text, None without one."""
    before, closed, _ = text.rpartition("</answer>")
    return before.rpartition("<answer>")[2] if closed and "<answer>" in before else None
