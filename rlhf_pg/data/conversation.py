"""Conversations in data cells: lists of {role, content}, as chat data sets have them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rlhf_pg.names import nearest

Turn = dict[str, Any]  # role, content (text), and what else the row gives, as tool calls
SYSTEM = ("system", "developer")
ROLES = (*SYSTEM, "user", "assistant", "tool")


def plain(value: Any) -> Any:
    """Return what a cell of numpy or pyarrow holds, as Python's own type."""
    for convert in ("tolist", "as_py"):
        if hasattr(value, convert):
            return getattr(value, convert)()
    return value


def decoded(value: Any) -> Any:
    """Return messages that a file of text columns holds as JSON, '[{"role": ...}]'; any other value as it is."""
    if isinstance(value, str) and value.lstrip().startswith("[") and '"role"' in value:
        try:
            messages = json.loads(value)
        except ValueError:
            return value
        return messages if is_conversation(messages) else value
    return value


def is_conversation(value: Any) -> bool:
    """Return whether a cell holds messages: as a list of them, or as columns, {"role": [...], "content": [...]}."""
    if isinstance(value, Mapping):
        return all(isinstance(value.get(key), list) for key in ("role", "content"))
    return isinstance(value, list | tuple) and any(isinstance(turn, Mapping) for turn in value)


def parse(value: Any, *, reply: bool = False) -> list[Turn]:
    """Return the turns of messages, each with text as content. Raises ValueError: which one is wrong, and how.

    The last turn is the user's; with `reply` it may also be the assistant's, after the user's.
    """
    turns = _turns(value)
    if reply and turns[-1]["role"] == "assistant":
        before = turns[-2]["role"] if len(turns) > 1 else "nobody"
        if before != "user":
            raise ValueError(f"before the assistant's last turn comes {before}'s; it has to be the user's")
    elif turns[-1]["role"] != "user":
        raise ValueError(
            f"the last of {len(turns)} messages is the {turns[-1]['role']}'s; a prompt ends with the user's: leave out "
            "what the model is to write"
        )
    asked = next(turn for turn in reversed(turns) if turn["role"] == "user")
    if not asked["content"].strip():
        raise ValueError("the user's last message is empty")
    return turns


def reply_text(value: Any) -> Any:
    """Return the text of messages that are a completion, one of the assistant's; any other value as it is.

    Raises ValueError for messages of another kind.
    """
    value = decoded(plain(value))
    if not is_conversation(value):
        return value
    turns = _turns(value)
    if [turn["role"] for turn in turns] != ["assistant"]:
        roles = ", ".join(turn["role"] for turn in turns)
        raise ValueError(f"its messages are of {roles}; a completion is one message of the assistant")
    return turns[0]["content"]


def _turns(value: Any) -> list[Turn]:
    if isinstance(value, Mapping):  # as `datasets` stores a sequence of structs
        columns = {key: cells for key, cells in value.items() if isinstance(cells, list)}
        if len({len(cells) for cells in columns.values()}) > 1:
            raise ValueError(
                f"{', '.join(f'{len(cells)} times {key!r}' for key, cells in columns.items())} in one list"
            )
        value = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    return [_turn(number, turn) for number, turn in enumerate(value, 1)]


def _turn(number: int, turn: Any) -> Turn:
    if not isinstance(turn, Mapping) or not {"role", "content"} <= turn.keys():
        keys = f"has the keys {', '.join(map(repr, turn))}" if isinstance(turn, Mapping) else f"is {str(turn)[:40]!r}"
        raise ValueError(f"message {number} {keys}; each must be {{'role': ..., 'content': ...}}")
    role, content = turn["role"], plain(turn["content"])
    if role not in ROLES:
        hint = nearest(str(role), ROLES)
        raise ValueError(f"message {number} has the role {role!r}; the roles are {', '.join(ROLES)}{hint}")
    if isinstance(content, list):
        content = "\n".join(_text_of_part(number, plain(part)) for part in content)
    if not isinstance(content, str):
        raise ValueError(f"message {number} ({role}) has {str(content)[:40]!r} as content; text is needed")
    return {**{key: value for key, value in turn.items() if value is not None}, "content": content}


def _text_of_part(number: int, part: Any) -> str:
    text = part.get("text") if isinstance(part, Mapping) else part
    if not isinstance(text, str):
        raise ValueError(
            f"message {number} has a part that is no text: {str(part)[:60]!r}; only text can be trained on"
        )
    return text
