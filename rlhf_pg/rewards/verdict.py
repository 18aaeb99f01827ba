"""From a worker's replies to scores: one verdict per function and sample, and the verdicts on a sample combined."""

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
    """The checked result of one function on one sample; `reward` None leaves the sample out."""

    reward: float | None
    outcome: Outcome
    detail: str = ""
    parts: dict[str, float | None] = field(default_factory=dict)
    token_rewards: tuple[float, ...] | None = None  # [c], of a function that rewards tokens; they sum to `reward`


def combine(rewards: Sequence[Reward], verdicts: Sequence[Verdict]) -> Score:
    """Return the weighted sum of the functions' rewards and the gravest outcome.

    A sample that one function leaves out has reward None.
    """
    parts: dict[str, float | None] = {}
    for reward, verdict in zip(rewards, verdicts, strict=True):
        parts[reward.name] = verdict.reward
        parts |= {f"{reward.name}/{name}": value for name, value in verdict.parts.items()}
    weighted = [None if v.reward is None else r.weight * v.reward for r, v in zip(rewards, verdicts, strict=True)]
    gravest = min(verdicts, key=lambda v: (v.reward is not None, PRECEDENCE.index(v.outcome)))
    detail = "; ".join(v.detail for v in verdicts if v.detail)
    if None in weighted:
        return Score(None, parts, gravest.outcome, detail)
    total = math.fsum(v for v in weighted if v is not None)
    return Score(total, parts, gravest.outcome, detail, _combine_token_rewards(rewards, verdicts))


def _combine_token_rewards(rewards: Sequence[Reward], verdicts: Sequence[Verdict]) -> tuple[float, ...] | None:
    """Return the weighted sum, token by token, of the functions that reward tokens; None when none does."""
    lists = [
        [r.weight * value for value in v.token_rewards]
        for r, v in zip(rewards, verdicts, strict=True)
        if v.token_rewards is not None
    ]
    return tuple(math.fsum(values) for values in zip(*lists, strict=True)) if lists else None


def parse_batch_reply(
    reward: Reward, reply: dict[str, Any], indices: Sequence[int], token_counts: Sequence[int]
) -> list[Verdict]:
    """Return one verdict per sample from the reply to a per-batch call, which must hold one value per sample."""
    values = reply.get("value")
    if "value" not in reply:
        return [parse_reply(reward, reply, i) for i in indices]
    if not isinstance(values, list) or len(values) != len(indices):
        got = f"{len(values)} values" if isinstance(values, list) else f"a {type(values).__name__}"
        fault = {"error": f"returned {got} for {len(indices)} samples; it must return a list of that length"}
        return [parse_reply(reward, fault, i) for i in indices]
    return [
        parse_reply(reward, {"value": value}, index, count)
        for index, count, value in zip(indices, token_counts, values, strict=True)
    ]


def memory_limit(reward: Reward) -> str:
    """Return how much memory a function may take and what to do if that is too little."""
    return f"it may take {reward.memory_mb} MB; {reward.raise_option('memory_mb')} if it needs more"


def parse_reply(reward: Reward, reply: dict[str, Any], index: int, token_count: int = 0) -> Verdict:
    """Return the verdict in a worker's reply to the call for one sample, which has `token_count` sampled tokens."""
    where = f"{reward.name}, sample {index}: "
    if "limit" in reply:
        if reply.get("memory"):
            reply = reply | {"limit": f"{reply['limit']}; {memory_limit(reward)}"}
        if reward.on_limit is not None:
            return Verdict(reward.on_limit, "timeout", f"{where}{reply['limit']}")
        return Verdict(None, "timeout" if "late" in reply else "error", f"{where}{reply['limit']}")
    if "value" not in reply:
        return Verdict(None, "error", f"{where}{reply.get('error', 'no value in the reply')}")
    value = reply["value"]
    if value is None:
        return Verdict(None, "excluded")
    if isinstance(value, dict):
        return _parse_parts(where, value)
    if isinstance(value, list):
        return _parse_token_rewards(where, value, token_count)
    number = _number(value)
    if number is None:
        return Verdict(None, "error", f"{where}returned {str(value)[:80]!r}, not a finite number")
    return Verdict(number, "scored")


def _parse_parts(where: str, value: dict[str, Any]) -> Verdict:
    """Return the verdict of a dict of parts: its reward is the part `reward`, else the sum."""
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
    total = _sum([v for v in parts.values() if v is not None])
    if total is None and "reward" not in parts:
        return Verdict(None, "error", f"{where}its parts sum to no finite number")
    reward = parts.pop("reward") if "reward" in parts else total
    if outcome in ("error", "excluded") or reward is None:
        return Verdict(None, outcome if outcome != "scored" else "excluded", detail, parts)
    if not parts and "reward" not in value and outcome == "scored":
        return Verdict(None, "error", f"{where}returned a dict without a number")
    return Verdict(reward, outcome, detail, parts)


def _parse_token_rewards(where: str, value: list[Any], token_count: int) -> Verdict:
    """Return the verdict of a list, one reward per sampled token; its sum is the function's reward."""
    if len(value) != token_count or not token_count:
        length = f"{token_count} sampled tokens" if token_count else "this text, which has no sampled tokens"
        return Verdict(None, "error", f"{where}returned {len(value)} rewards for {length}")
    numbers = [_number(v) for v in value]
    bad = next((i for i, number in enumerate(numbers) if number is None), None)
    if bad is not None:
        shown = repr(value[bad])[:80]
        return Verdict(None, "error", f"{where}reward {bad} of its list is {shown}, not a finite number")
    token_rewards = tuple(n for n in numbers if n is not None)
    total = _sum(token_rewards)
    if total is None:
        return Verdict(None, "error", f"{where}its list sums to no finite number")
    return Verdict(total, "scored", token_rewards=token_rewards)


def _sum(numbers: Sequence[float]) -> float | None:
    """Return the sum of finite numbers, None when it is not finite."""
    try:
        return math.fsum(numbers)
    except OverflowError:
        return None


def _number(value: Any) -> float | None:
    """Return a finite float (True and False are 1 and 0), or None for anything else."""
    try:
        number = float(value) if isinstance(value, bool | int | float) else math.nan
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
