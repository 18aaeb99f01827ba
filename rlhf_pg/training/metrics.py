"""Make the flat numbers of one step from its rollouts and optimizer steps."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rlhf_pg.distributed.ranks import Ranks
from rlhf_pg.types import Rollout

FAILURE_CHARACTERS = 300  # that are sent to the other ranks


@dataclass(frozen=True)
class Judged:
    """What the metrics need to know of a sample: JSON, for the other ranks."""

    prompt: str  # id
    reward: float | None
    parts: dict[str, float | None]
    outcome: str
    finish: str
    length: int  # sampled tokens
    failure: str = ""  # why the reward function failed

    @classmethod
    def of(cls, rollout: Rollout) -> Judged:
        score, completion = rollout.score, rollout.completion
        failure = score.detail[:FAILURE_CHARACTERS] if score.outcome in ("error", "timeout") else ""
        length = len(completion.tokens)
        return cls(rollout.prompt.id, score.reward, score.parts, score.outcome, completion.finish, length, failure)


def judged_groups(ranks: Ranks, rollouts: Sequence[Rollout], samples: int) -> list[list[Judged]]:
    """Return all ranks' samples as judged, a list per prompt, in the order in which prompts were shared out.

    `rollouts` are this rank's, `samples` of each of its prompts.
    """
    groups = [rollouts[start : start + samples] for start in range(0, len(rollouts), samples)]
    of_rank = [[asdict(Judged.of(rollout)) for rollout in group] for group in groups]
    return [[Judged(**sample) for sample in group] for group in ranks.gather_shares(of_rank, "scores")]


def rollout_metrics(judged: Sequence[Judged]) -> dict[str, float]:
    """Return reward (excluded samples left out), outcomes, lengths and truncation of one step's samples."""
    rewards = [j.reward for j in judged if j.reward is not None]
    groups: dict[str, list[float]] = defaultdict(list)
    parts: dict[str, list[float]] = defaultdict(list)
    for sample in judged:
        if sample.reward is not None:
            groups[sample.prompt].append(sample.reward)
        for name, value in sample.parts.items():
            if value is not None:
                parts[name].append(value)
    lengths = [j.length for j in judged]
    flat = [min(g) == max(g) for g in groups.values() if len(g) > 1]
    outcomes = Counter(j.outcome for j in judged)
    return {
        "reward/mean": statistics.fmean(rewards) if rewards else float("nan"),
        "reward/std": statistics.pstdev(rewards) if rewards else float("nan"),
        "reward/zero_std_groups": sum(flat) / max(1, len(flat)),
        "completion/length_mean": statistics.fmean(lengths),
        "completion/truncated": sum(j.finish == "length" for j in judged) / len(judged),
        "tokens/generated": sum(lengths),
        "samples/excluded": len(judged) - len(rewards),
        **_truncation_cost(judged),
        **{f"reward/{name}": statistics.fmean(values) for name, values in parts.items()},
        **{f"outcome/{name}": count for name, count in sorted(outcomes.items())},
    }


def _truncation_cost(judged: Sequence[Judged]) -> dict[str, float]:
    """Return how much less completions that were cut off earn, on average, than those that ended."""
    rewards: dict[bool, list[float]] = {True: [], False: []}
    for sample in judged:
        if sample.reward is not None:
            rewards[sample.finish == "length"].append(sample.reward)
    if not all(rewards.values()):
        return {}
    return {"completion/truncation_cost": statistics.fmean(rewards[False]) - statistics.fmean(rewards[True])}


def sample_rows(step: int, rollouts: Sequence[Rollout], limit: int) -> list[dict[str, Any]]:
    """Return rows for rollouts/: the first samples of evenly spread prompts, `limit` in all."""
    stride = max(1, len(rollouts) // limit) if limit else 1
    return [_row(step, rollout) for rollout in rollouts[::stride][:limit]]


def _row(step: int, rollout: Rollout) -> dict[str, Any]:
    return {
        "step": step,
        "prompt_id": rollout.prompt.id,
        "prompt": rollout.prompt.text,
        "completion": rollout.text,
        "answer": rollout.prompt.columns.get("answer"),
        "reward": rollout.score.reward,
        "parts": rollout.score.parts,
        "outcome": rollout.score.outcome,
        "detail": rollout.score.detail,
        "finish": rollout.completion.finish,
        "tokens": rollout.completion.tokens.tolist(),
        "logp": [round(x, 5) for x in rollout.completion.logp.tolist()],
    }


def mean_of(updates: Sequence[dict[str, float]]) -> dict[str, float]:
    """Combine the metrics of several optimizer steps: by the mean; counts of tokens by the sum, the worst token by the
    maximum, the learning rate by the last."""
    if not updates:
        return {}
    merged = {name: statistics.fmean(u[name] for u in updates) for name in updates[0]}
    for name in {"tokens/forwarded", "tokens/needed"} & merged.keys():
        merged[name] = sum(u[name] for u in updates)
    if "mismatch/worst" in merged:
        merged["mismatch/worst"] = max(u["mismatch/worst"] for u in updates)
    return merged | ({"lr": updates[-1]["lr"]} if "lr" in merged else {})
