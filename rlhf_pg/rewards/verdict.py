"""What a reply of a worker says of a sample, and what the functions together say of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from rlhf_pg.rewards.plugin import Reward
from rlhf_pg.types import Outcome, Score

PRECEDENCE: tuple[Outcome, ...] = ("error", "excluded", "timeout", "truncated", "unparseable", "scored")


@dataclass(frozen=True)
class Verdict:
    """What one function says of one sample."""

    reward: float | None
    outcome: Outcome
    detail: str = ""
    parts: dict[str, float | None] = field(default_factory=dict)
    token_rewards: tuple[float, ...] | None = None  # [c], of a function that rewards tokens; they sum to `reward`


def combine(rewards: Sequence[Reward], verdicts: Sequence[Verdict | None]) -> Score:
    """The weighted sum of the functions; the gravest outcome; any sample one function leaves out is left out."""
    found = [v for v in verdicts if v is not None]
    parts: dict[str, float | None] = {}
    for reward, verdict in zip(rewards, found, strict=True):
        parts[reward.name] = verdict.reward
        parts |= {f"{reward.name}/{name}": value for name, value in verdict.parts.items()}
    weighted = [None if v.reward is None else r.weight * v.reward for r, v in zip(rewards, found, strict=True)]
    worst = min(found, key=lambda v: (v.reward is not None, PRECEDENCE.index(v.outcome)))
    detail = "; ".join(v.detail for v in found if v.detail)
    if None in weighted:
        return Score(None, parts, worst.outcome, detail)
    total = math.fsum(v for v in weighted if v is not None)
    return Score(total, parts, worst.outcome, detail, _of_tokens(rewards, found))


def _of_tokens(rewards: Sequence[Reward], verdicts: Sequence[Verdict]) -> tuple[float, ...] | None:
    """The weighted sum, token by token, of the functions that reward tokens; None when none does."""
    lists = [
        [r.weight * value for value in v.token_rewards]
        for r, v in zip(rewards, verdicts, strict=True)
        if v.token_rewards is not None
    ]
    return tuple(math.fsum(values) for values in zip(*lists, strict=True)) if lists else None


def read_batch(reward: Reward, reply: dict[str, Any], indices: Sequence[int], tokens: Sequence[int]) -> list[Verdict]:
    """Verdicts of a per-batch function, which must return one value per sample. `tokens`: how many each sample has."""
    values = reply.get("value")
    if "value" not in reply:
        return [read(reward, reply, i) for i in indices]
    if not isinstance(values, list) or len(values) != len(indices):
        got = f"{len(values)} values" if isinstance(values, list) else f"a {type(values).__name__}"
        fault = {"error": f"returned {got} for {len(indices)} samples; it must return a list of that length"}
        return [read(reward, fault, i) for i in indices]
    return [read(reward, {"value": value}, *of) for *of, value in zip(indices, tokens, values, strict=True)]


def read(reward: Reward, reply: dict[str, Any], index: int, tokens: int = 0) -> Verdict:
    """The verdict in a worker's reply about one sample of so many tokens."""
    where = f"{reward.name}, sample {index}: "
    if "limit" in reply:
        if reward.on_limit is not None:
            return Verdict(reward.on_limit, "timeout", f"{where}{reply['limit']}")
        return Verdict(None, "timeout" if "late" in reply else "error", f"{where}{reply['limit']}")
    if "value" not in reply:
        return Verdict(None, "error", f"{where}{reply.get('error', 'no value in the reply')}")
    value = reply["value"]
    if value is None:
        return Verdict(None, "excluded")
    if isinstance(value, dict):
        return _read_parts(where, value)
    if isinstance(value, list):
        return _read_list(where, value, tokens)
    number = _number(value)
    if number is None:
        return Verdict(None, "error", f"{where}returned {str(value)[:80]!r}, not a finite number")
    return Verdict(number, "scored")


def _read_parts(where: str, value: dict[str, Any]) -> Verdict:
    """A dict: `reward` if it has that key, else the sum of its parts; `outcome` and `detail` are not parts."""
    outcome = value.get("outcome", "scored")
    if outcome not in get_args(Outcome):
        return Verdict(None, "error", f"{where}outcome {str(outcome)[:40]!r} is none of {', '.join(get_args(Outcome))}")
    parts: dict[str, float | None] = {}
    for name, part in value.items():
        if name not in ("outcome", "detail"):
            parts[name] = None if part is None else _number(part)
            if part is not None and parts[name] is None:
                return Verdict(None, "error", f"{where}part {name!r} is {str(part)[:80]!r}, not a finite number")
    detail = where + str(value["detail"])[:500] if value.get("detail") else ""
    numbers = [v for v in parts.values() if v is not None]
    total = _sum(numbers)
    if total is None and "reward" not in parts:
        return Verdict(None, "error", f"{where}its parts sum to no finite number")
    reward = parts.pop("reward") if "reward" in parts else total
    if outcome in ("error", "excluded") or reward is None:
        return Verdict(None, outcome if outcome != "scored" else "excluded", detail, parts)
    if not parts and "reward" not in value and outcome == "scored":
        return Verdict(None, "error", f"{where}returned a dict without a number")
    return Verdict(reward, outcome, detail, parts)


def _read_list(where: str, value: list[Any], tokens: int) -> Verdict:
    """A list: one reward per sampled token, whose sum is the function's value."""
    if len(value) != tokens or not tokens:
        held = f"{tokens} sampled tokens" if tokens else "this text, which has no sampled tokens"
        return Verdict(None, "error", f"{where}returned {len(value)} rewards for {held}")
    numbers = [_number(v) for v in value]
    bad = next((at for at, number in enumerate(numbers) if number is None), None)
    if bad is not None:
        shown = repr(value[bad])[:80]
        return Verdict(None, "error", f"{where}reward {bad} of its list is {shown}, not a finite number")
    given = tuple(n for n in numbers if n is not None)
    total = _sum(given)
    if total is None:
        return Verdict(None, "error", f"{where}its list sums to no finite number")
    return Verdict(total, "scored", token_rewards=given)


def _sum(numbers: Sequence[float]) -> float | None:
    """None when the sum of these finite numbers is not."""
    try:
        return math.fsum(numbers)
    except OverflowError:
        return None


def _number(value: Any) -> float | None:
    """A finite float; True and False count as 1 and 0. None for anything else."""
    try:
        number = float(value) if isinstance(value, bool | int | float) else math.nan
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
