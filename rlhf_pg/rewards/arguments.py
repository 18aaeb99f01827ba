"""The keyword arguments a reward function is called with, built from samples and the names the function asks for."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rlhf_pg.rewards import plugin
from rlhf_pg.rewards.plugin import TOKEN_ARGUMENTS, Reward
from rlhf_pg.rewards.values import to_json
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


def check_rows(
    rewards: Sequence[Reward], rows: Sequence[tuple[str, Mapping[str, Any]]], *, tokens: bool = True
) -> None:
    """Raise ValueError for a row from which a function cannot be called: `rows` are (name of the row, columns).

    A row may lack an argument of a per-sample function, or hold what cannot be sent to another process. `tokens` is
    False for texts from a file, whose tokens are unknown.
    """
    union = {name for _, columns in rows for name in columns}
    for reward in rewards:
        plugin.check(reward, union, tokens=tokens)
        names = union - reward.args.keys() if reward.takes_rest else union & {*reward.arguments, *reward.optional}
        needed = () if reward.batched else union.intersection(reward.arguments) - set(plugin.SAMPLE_ARGUMENTS)
        for where, columns in rows:
            for name in sorted(needed - columns.keys() if needed else ()):
                raise ValueError(f"{where} has no column {name!r}, which reward {reward.fn!r} asks for")
            for name in sorted(names & columns.keys()):
                _check_value(reward, where, name, columns[name])


def replaced_columns(rewards: Sequence[Reward], columns: Collection[str]) -> list[str]:
    """Say, a line each, which arguments that the user gave stand in for a column of the data."""
    return [
        f"{reward.argument_option(name)}: used in place of the data's column {name!r}"
        for reward in rewards
        for name in reward.args
        if name in columns
    ]


def _check_value(reward: Reward, where: str, column: str, value: Any) -> None:
    if value is None or isinstance(value, str | int | float):
        return
    try:
        to_json(value)
    except (TypeError, RecursionError) as error:
        what = str(error) if isinstance(error, TypeError) else "values nested too deeply"
        named = column in (*reward.arguments, *reward.optional)
        why = "which asks for it" if named else "which takes every column (**kwargs)"
        raise ValueError(
            f"{where}: column {column!r} holds {what}, which cannot be sent to the process that runs reward "
            f"{reward.fn!r}, {why}: make it text, numbers, dates, bytes, or lists and dicts of those, or drop it"
            + ("" if named else ", or let the function name the columns it uses instead of **kwargs")
        ) from error


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
    selected = {n: v for n, v in columns.items() if (reward.takes_rest or n in names) and n not in reward.args}
    return selected | {n: v for n, v in tokens.items() if n in names}
