"""Which tokens end a completion, and what is wrong with a tokenizer's ids."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

MARK = "0"  # an assistant's answer, to see what a chat template writes after it


def eos_ids(
    tokenizer: PreTrainedTokenizerBase, *configs: Any, vocabulary: int | None = None
) -> tuple[tuple[int, ...], list[str]]:
    """Return the ids that end a completion, and notes on those that do not as they should.

    They are the tokenizer's EOS, those of the model's config and generation config, and the token with which the chat
    template ends a turn: a model that was trained on that template stops with it. Ids at or above `vocabulary`, the
    rows of the model's head, can never be sampled and are left out with a note.
    Raises ValueError when none is left: completions could then never stop.
    """
    candidates: list[tuple[Any, str]] = [(tokenizer.eos_token_id, "the tokenizer's eos_token")]
    for config in configs:
        ids = getattr(config, "eos_token_id", None)  # an int, a list, or None
        named = f"eos_token_id of {type(config).__name__}"
        candidates += [(i, named) for i in (ids if isinstance(ids, list | tuple) else [ids])]
    notes, stops = [], []
    for token, source in candidates:
        if token is None or token in stops:
            continue
        if vocabulary is not None and not 0 <= token < vocabulary:
            notes.append(
                f"stop token {token} ({source}) is outside the model's vocabulary of {vocabulary} tokens: unused"
            )
        else:
            stops.append(token)
    turn_end = _turn_end(tokenizer)
    if turn_end is not None and turn_end not in stops and (vocabulary is None or turn_end < vocabulary):
        stops.append(turn_end)
        token = tokenizer.convert_ids_to_tokens(turn_end)
        notes.append(
            f"stop tokens: the chat template ends a turn with {token!r} ({turn_end}), which neither the tokenizer nor "
            "generation_config.json names as an end: completions stop there too"
        )
    if not stops:
        unusable = "".join(f"; {note}" for note in notes)
        raise ValueError(
            "no end-of-sequence token: set eos_token in the tokenizer, or eos_token_id in the model's config, to one "
            f"of the model's tokens{unusable}"
        )
    return tuple(stops), list(dict.fromkeys(notes))


def check_tokens(tokens: Iterable[int], where: str, tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> None:
    """Raise ValueError for a token that the model has no embedding for (`vocabulary`: the rows it has)."""
    highest = max(tokens, default=0)
    if highest >= vocabulary:
        token = tokenizer.convert_ids_to_tokens(highest)
        raise ValueError(
            f"{where} has token {highest} ({token!r}), and the model has embeddings for {vocabulary} tokens, the "
            f"tokenizer {len(tokenizer)}: it is another model's, or tokens were added to it and not to the model; "
            "see model.tokenizer"
        )


def _turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the special token that the chat template writes right after an assistant's answer, if it writes one."""
    if not tokenizer.chat_template:
        return None
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": MARK}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except (TemplateError, ValueError, TypeError):  # said where prompts are rendered, or a template of another shape
        return None
    if MARK not in str(text):  # a template of another shape, as one that takes content in parts
        return None
    after = str(text).rpartition(MARK)[2].lstrip()
    ids = tokenizer.encode(after, add_special_tokens=False)
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return ids[0] if ids and ids[0] in special else None
