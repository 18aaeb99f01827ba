"""The keyword arguments a reward function is called with, built from samples and the names the function asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_pg.rewards.plugin import TOKEN_ARGUMENTS, Reward
from rlhf_pg.types import Sample


def sample_arguments(reward: Reward, sample: Sample) -> dict[str, Any]:
    """Return the arguments of a per-sample function.

    The sample's texts and tokens win over data columns of the same name. Tokens go only to a function that names them,
    and only if the sample has some.
    """
    texts = {"prompt": sample.prompt, "completion": sample.completion, "finish": sample.finish}
    return _select(reward, sample.columns | texts, _tokens(sample))


def batch_arguments(reward: Reward, samples: Sequence[Sample]) -> dict[str, list[Any]]:
    """Return the arguments of a per-batch function: lists over the samples, None where a sample lacks a column.

    Tokens go to the function only if every sample has some.
    """
    names = {name for sample in samples for name in sample.columns}
    columns: dict[str, list[Any]] = {name: [s.columns.get(name) for s in samples] for name in names}
    columns |= {"prompts": [s.prompt for s in samples], "completions": [s.completion for s in samples]}
    columns["finish"] = [s.finish for s in samples]
    tokens = [_tokens(s) for s in samples]
    return _select(reward, columns, {n: [t[n] for t in tokens] for n in TOKEN_ARGUMENTS} if all(tokens) else {})


def token_count(sample: Sample) -> int:
    """Return the number of sampled tokens; 0 for a text that was not sampled."""
    return sample.completion_tokens or len(sample.token_texts)


def _tokens(sample: Sample) -> dict[str, Any]:
    """Return the values of TOKEN_ARGUMENTS, or nothing for a text that was not sampled."""
    count = token_count(sample)
    limit, texts = sample.max_new_tokens, sample.token_texts
    return {"completion_tokens": count, "max_new_tokens": limit, "token_texts": texts} if count else {}


def _select(reward: Reward, columns: Mapping[str, Any], tokens: Mapping[str, Any]) -> dict[str, Any]:
    names = {*reward.arguments, *reward.optional}
    selected = {n: v for n, v in columns.items() if reward.takes_rest or n in names}
    return selected | {n: v for n, v in tokens.items() if n in names}
