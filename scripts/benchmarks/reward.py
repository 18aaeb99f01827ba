"""The reward of every contender, the share of distinct characters in a completion."""

from __future__ import annotations


def reward(completions: list[str], **_: object) -> list[float]:
    return [len(set(text)) / max(1, len(text)) for text in completions]
