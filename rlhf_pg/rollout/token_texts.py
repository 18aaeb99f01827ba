"""The text of each sampled token, so that the pieces joined are the text of the completion.

A tokenizer promises text for whole sequences only: a character may be spread over several tokens (byte-level BPE, byte
fallback), and a token alone may lack the space it has after another (SentencePiece). Work is linear in the tokens, and
mostly one table look-up each. tokenizers' DecodeStream is no substitute: it never emits bytes at the end that are no
character, puts others at a later token, and raises for such bytes under byte fallback.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import groupby
from typing import Any

from transformers import PreTrainedTokenizerBase

BROKEN = "\ufffd"  # what stands for bytes that are no character
LONGEST = 4  # tokens of one character: it has at most four bytes

Decode = Callable[[Sequence[int]], str]


class TokenTexts:
    """Called with the tokens of a completion: one text per token, "" for the end and padding tokens.

    A character spread over several tokens is the text of the last of them; so are characters that no token boundary
    separates. Tokens seen before, in any completion, are not decoded again.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int] = ()) -> None:
        self.tokenizer, self.hidden = tokenizer, hidden_ids(tokenizer, ends)
        self.first: dict[int, str] = {}  # how a token reads at the beginning
        self.after: dict[int, str] = {}  # after another token

    def __call__(self, ids: Sequence[int]) -> tuple[str, ...]:
        for i in set(ids).difference(self.first):
            self.first[i] = self._decode([i])
            self.after[i] = self._decode([i, i])[len(self.first[i]) :]
        return _pieces(ids, self.first, self.after, self._decode)

    def _decode(self, ids: Sequence[int]) -> str:
        return text_of(self.tokenizer, ids, self.hidden)


def hidden_ids(tokenizer: PreTrainedTokenizerBase, ends: Sequence[int] = ()) -> frozenset[int]:
    """Return the ids that do not show in the text of a completion: those that end it, and padding.

    Other special tokens do: a tokenizer may have <think> or <answer> as one, which rewards look for.
    """
    ids = (*ends, tokenizer.eos_token_id, tokenizer.pad_token_id)
    return frozenset(i for i in ids if isinstance(i, int))


def text_of(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], hidden: Collection[int]) -> str:
    """Return the text of a completion, space for space: of its tokens but the hidden ones.

    A model may have more rows than its tokenizer has tokens; an id without a token is nothing.
    """
    shown = [i for i in ids if i not in hidden]
    exactly: dict[str, Any] = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    try:
        return str(tokenizer.decode(shown, **exactly))
    except (ValueError, TypeError, LookupError):  # from tokenizers written in Python, at an id without a token
        tokens = set(tokenizer.get_vocab().values())
        return str(tokenizer.decode([i for i in shown if i in tokens], **exactly))


def token_texts(
    tokenizer: PreTrainedTokenizerBase, completions: Sequence[Sequence[int]], ends: Sequence[int] = ()
) -> list[tuple[str, ...]]:
    """Return the texts of the tokens of each completion. `ends`: as of TokenTexts."""
    texts = TokenTexts(tokenizer, ends)
    return [texts(ids) for ids in completions]


def of_text(tokenizer: PreTrainedTokenizerBase, text: str, ends: Sequence[int] = ()) -> tuple[str, ...]:
    """Return the same for a text that was not sampled: of the tokens it would be written with, EOS at the end."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    (pieces,) = token_texts(tokenizer, [ids], ends)
    return (*pieces, "")


def _pieces(ids: Sequence[int], first: dict[int, str], after: dict[int, str], decode: Decode) -> tuple[str, ...]:
    visible = [at for at, i in enumerate(ids) if first[i] or after[i]]  # without end and padding
    pieces = [after[i] for i in ids]
    if visible:
        pieces[visible[0]] = first[ids[visible[0]]]
    for broken, places in groupby(visible, key=lambda at: BROKEN in first[ids[at]]):
        if broken:
            run = list(places)
            for at, piece in zip(run, _characters([ids[at] for at in run], decode), strict=True):
                pieces[at] = piece
    return tuple(pieces)


def _characters(ids: Sequence[int], decode: Decode) -> list[str]:
    """Return the same for a run of tokens that are parts of characters, with complete ones before and after."""
    singly = [decode([i]) for i in ids]
    if "".join(singly) == decode(ids):  # no character at all
        return singly
    pieces, start = [""] * len(ids), 0
    for end in range(1, len(ids) + 1):
        if _separate(ids[max(start, end - LONGEST) : end], ids[end : end + LONGEST - 1], decode):
            pieces[end - 1] = decode(ids[start:end])
            start = end
    return pieces


def _separate(before: Sequence[int], after: Sequence[int], decode: Decode) -> bool:
    """Return whether no character has a part on both sides: `before` ends in a complete one, or shares none.

    A broken character is U+FFFD, and with the bytes that complete it less than both apart.
    """
    text = decode(before)
    follow = [after[: n + 1] for n in range(len(after))]
    return not text.endswith(BROKEN) or all(text + decode(ids) == decode([*before, *ids]) for ids in follow)
