"""What a reward function is called with, from the samples and the names of its arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlhf_pg.rewards.plugin import TOKEN_ARGUMENTS, Reward
from rlhf_pg.types import Sample


def arguments(reward: Reward, sample: Sample) -> dict[str, Any]:
    """What a per-sample function is called with. The sample's own texts and tokens win over columns of the same name.

    Tokens go only to a function that names them, and only of a sample that has some.
    """
    known = sample.columns | {"prompt": sample.prompt, "completion": sample.completion, "finish": sample.finish}
    wanted = {*reward.arguments, *reward.optional}
    given = known if reward.takes_rest else {k: v for k, v in known.items() if k in wanted}
    named = wanted.intersection(TOKEN_ARGUMENTS)
    return given | {k: _tokens(k, sample) for k in named} if named and token_count(sample) else given


def batch_arguments(reward: Reward, samples: Sequence[Sample]) -> dict[str, list[Any]]:
    """What a per-batch function is called with: lists over the samples, None where a sample lacks a column."""
    known = {name: [s.columns.get(name) for s in samples] for name in {n for s in samples for n in s.columns}}
    known |= {"prompts": [s.prompt for s in samples], "completions": [s.completion for s in samples]}
    known["finish"] = [s.finish for s in samples]
    wanted = {*reward.arguments, *reward.optional}
    given = known if reward.takes_rest else {k: v for k, v in known.items() if k in wanted}
    named = wanted.intersection(TOKEN_ARGUMENTS)
    there = named and all(token_count(s) for s in samples)
    return given | {k: [_tokens(k, s) for s in samples] for k in named} if there else given


def token_count(sample: Sample) -> int:
    """Its sampled tokens; 0 when it was not sampled."""
    return sample.completion_tokens or len(sample.token_texts)


def _tokens(argument: str, sample: Sample) -> int | tuple[str, ...]:
    return token_count(sample) if argument == "completion_tokens" else getattr(sample, argument)
