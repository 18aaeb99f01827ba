"""The short forms of a recipe's list of rewards: a name is a section with only `fn`, one name is a list of one."""

from __future__ import annotations

from typing import Any


def as_sections(rewards: Any) -> Any:
    """Return `gsm8k`, or `[gsm8k, {fn: length}]`, as a list of sections; anything else as it is, to be refused."""
    if isinstance(rewards, str):
        rewards = [rewards]
    if not isinstance(rewards, list):
        return rewards
    return [{"fn": reward} if isinstance(reward, str) else reward for reward in rewards]


def in_sections(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return the plain values of a recipe with its rewards, if it has some, as sections."""
    return {**recipe, "rewards": as_sections(recipe["rewards"])} if "rewards" in recipe else recipe
