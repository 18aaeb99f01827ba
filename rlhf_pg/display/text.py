"""Look at one sample: text made safe to show, and a table of its tokens."""

from __future__ import annotations

import math
import unicodedata
from typing import Any

from rich.table import Table
from rich.text import Text

HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})  # control, format (bidi, zero width), surrogate, separators
SHOWN = {"\n": "⏎", "\t": "⇥"}


def visible(text: str, keep: str = "") -> str:
    """`text` with every character that could act on a terminal or hide replaced by a visible sign.

    Newline becomes ⏎, tab ⇥, and any other control or format character (escape, right-to-left override, zero width) its
    escape: \\x1b, \\u202e, \\u200b. Characters in `keep` stay as they are.
    """
    if text.isprintable():
        return text
    return "".join(c if c in keep or unicodedata.category(c) not in HIDDEN else _sign(c) for c in text)


def token_table(rollout_row: dict[str, Any], tokenizer: Any) -> Table:
    """One line per token of a row of `rollouts/*.jsonl`: position, id, text, log-prob, probability, mask, advantage.

    `tokens` [c] are ids; `logp` [c] is shown as "-" where it is shorter; `advantage` is one number for the row or [c];
    `mask` [c] is optional (absent = every token was sampled by the policy).

    Raises ValueError when the row has no tokens.
    """
    ids = rollout_row.get("tokens")
    if not ids:
        raise ValueError(
            f"the row has no 'tokens' (it has {', '.join(sorted(rollout_row)) or 'nothing'}); give a rollouts/ row"
        )
    reward = rollout_row.get("reward")
    table = Table(
        title=Text(
            f"{rollout_row.get('prompt_id', '?')}  step {rollout_row.get('step', '?')}  reward {_number(reward, 3)}"
        )
    )
    for name in ("pos", "id", "text", "logp", "prob", "mask", "advantage"):
        table.add_column(name, justify="left" if name == "text" else "right", no_wrap=name != "text")
    for position, token in enumerate(ids):
        logp = _at(rollout_row.get("logp"), position)
        prob = math.exp(min(logp, 0.0)) if isinstance(logp, int | float) else None
        table.add_row(
            str(position),
            str(token),
            Text(repr(token_text(tokenizer, token)), style=_shade(prob)),
            _number(logp, 3),
            _number(prob, 3),
            "yes" if _at(rollout_row.get("mask", True), position) else "no",
            _number(_at(rollout_row.get("advantage"), position), 3),
        )
    return table


def token_text(tokenizer: Any, token: int) -> str:
    """The token alone as text; its vocabulary entry when it is only part of a character."""
    text = tokenizer.decode([token], skip_special_tokens=False)
    return text if text and "\ufffd" not in text else str(tokenizer.convert_ids_to_tokens(token))


def _sign(character: str) -> str:
    if character in SHOWN:
        return SHOWN[character]
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _at(values: Any, position: int) -> Any:
    if isinstance(values, list | tuple):
        return values[position] if position < len(values) else None
    return values


def _number(value: Any, digits: int) -> str:
    return f"{value:.{digits}f}" if isinstance(value, int | float) else "-"


def _shade(prob: float | None) -> str:
    if prob is None or prob >= 0.5:
        return ""
    return "yellow" if prob >= 0.1 else "red"
