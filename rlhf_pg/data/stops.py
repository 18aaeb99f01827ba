"""Which tokens end a completion, and what is wrong with a tokenizer's ids."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerBase

ANSWER = "It is 585987."  # an assistant's, to see what a chat template writes after it
MEDIA = re.compile("image|audio|video|vision", re.IGNORECASE)  # in the names of tokens that stand for no text


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
        file = "generation_config.json" if isinstance(config, GenerationConfig) else "config.json"
        named = f"eos_token_id of {file}"
        candidates += [(i, named) for i in (ids if isinstance(ids, list | tuple) else [ids])]
    notes, stops = [], []
    for token, source in candidates:
        if token is None or token in stops:
            continue
        if not isinstance(token, int):
            notes.append(f"stop token {token!r} ({source}) is no number: unused")
        elif vocabulary is not None and not 0 <= token < vocabulary:
            notes.append(
                f"stop token {token} ({source}) is outside the model's vocabulary of {vocabulary} tokens: unused"
            )
        else:
            stops.append(token)
    ending = turn_end(tokenizer)
    if ending is not None and ending not in stops and (vocabulary is None or ending < vocabulary):
        stops.append(ending)
        token = tokenizer.convert_ids_to_tokens(ending)
        notes.append(
            f"stop tokens: the chat template ends a turn with {token!r} ({ending}), which neither the tokenizer nor "
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


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> None:
    """Raise ValueError for a tokenizer that has tokens above the model's rows of embeddings (`vocabulary`).

    Those for padding, pictures and sound are let pass: they are no text, so none is ever read or written here.
    """
    outside = sorted(
        (i, token)
        for token, i in tokenizer.get_vocab().items()
        if i >= vocabulary and i != tokenizer.pad_token_id and not MEDIA.search(token)
    )
    if outside:
        named = [f"{token!r} ({i}{', its eos_token' if i == tokenizer.eos_token_id else ''})" for i, token in outside]
        named.sort(key=lambda name: "its eos_token" not in name)
        raise ValueError(
            f"the tokenizer {tokenizer.name_or_path} has {len(tokenizer)} tokens and the model's vocabulary is "
            f"{vocabulary}: it has no embedding for {len(outside)} of them, such as {', '.join(named[:3])}. The "
            "tokenizer is another model's (model.tokenizer, model.path), or tokens were added to it and not to the "
            "model: model.resize_token_embeddings(len(tokenizer)) of transformers adds them"
        )


def turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the token that the chat template writes right after an assistant's answer, if it writes one.

    Only a token that the tokenizer was given by name counts, such as <|im_end|>, not a newline or a word.
    """
    if not tokenizer.chat_template:
        return None
    turns = [{"role": "user", "content": "What is 271828 + 314159?"}, {"role": "assistant", "content": ANSWER}]
    text = _rendered(tokenizer, turns)
    if ANSWER not in text:  # a template that takes content in parts
        text = _rendered(tokenizer, [{**t, "content": [{"type": "text", "text": t["content"]}]} for t in turns])
    if ANSWER not in text:
        return None
    after = text.rpartition(ANSWER)[2].lstrip()
    ids = tokenizer.encode(after, add_special_tokens=False)
    given = {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}
    return ids[0] if ids and ids[0] in given else None


def _rendered(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, Any]]) -> str:
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False))
    except Exception:  # a template is somebody's program; that it is broken is said where prompts are rendered
        return ""
