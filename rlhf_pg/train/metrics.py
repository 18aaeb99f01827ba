"""The flat numbers of one step, from its rollouts."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from rlhf_pg.types import Rollout


def rollout_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Reward (excluded samples left out), outcomes, lengths and truncation of one step's samples."""
    rewards = [r.score.reward for r in rollouts if r.score.reward is not None]
    groups: dict[str, list[float]] = defaultdict(list)
    parts: dict[str, list[float]] = defaultdict(list)
    for rollout in rollouts:
        if rollout.score.reward is not None:
            groups[rollout.prompt.id].append(rollout.score.reward)
        for name, value in rollout.score.parts.items():
            if value is not None:
                parts[name].append(value)
    lengths = [len(r.completion.tokens) for r in rollouts]
    outcomes = Counter(r.score.outcome for r in rollouts)
    return {
        "reward/mean": statistics.fmean(rewards) if rewards else float("nan"),
        "reward/std": statistics.pstdev(rewards) if rewards else float("nan"),
        "reward/zero_std_groups": sum(min(g) == max(g) for g in groups.values()) / max(1, len(groups)),
        "completion/length_mean": statistics.fmean(lengths),
        "completion/truncated": sum(r.completion.finish == "length" for r in rollouts) / len(rollouts),
        "tokens/generated": sum(lengths),
        "samples/excluded": len(rollouts) - len(rewards),
        **{f"reward/{name}": statistics.fmean(values) for name, values in parts.items()},
        **{f"outcome/{name}": count for name, count in sorted(outcomes.items())},
    }


def sample_rows(step: int, rollouts: Sequence[Rollout], limit: int) -> list[dict[str, Any]]:
    """Rows for rollouts/: the first samples of evenly spread prompts, `limit` in all."""
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
    """Metrics of several optimizer steps as one: the mean; counts of tokens are summed; the last learning rate."""
    if not updates:
        return {}
    merged = {name: statistics.fmean(u[name] for u in updates) for name in updates[0]}
    for name in {"tokens/forwarded", "tokens/needed"} & merged.keys():
        merged[name] = sum(u[name] for u in updates)
    return merged | ({"lr": updates[-1]["lr"]} if "lr" in merged else {})
