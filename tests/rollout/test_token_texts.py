"""The text of single tokens: joined they are the completion, and a character belongs to the token that completes it."""

import random

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AddedToken, ByT5Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rlhf_pg.models.tokenizer import character_tokenizer
from rlhf_pg.rollout.token_texts import TokenTexts, hidden_ids, of_text, text_of, token_texts

TEXT = "naïve café, œuvre 中文字符 日本語 δοκιμή ∑∫√ 🙂🎉 don't 12 + 34 = 46\n"
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]  # GPT-2's table: these bytes stand for themselves
OTHERS = [b for b in range(256) if b not in PRINTABLE]
SIGN = {b: chr(b) if b in PRINTABLE else chr(256 + OTHERS.index(b)) for b in range(256)}


def byte_level(*merged: bytes) -> PreTrainedTokenizerFast:
    """Token n is byte n; then pairs of bytes, from 256 on; then <eos>."""
    pairs = [(SIGN[a], SIGN[b]) for a, b in merged]
    vocabulary = {SIGN[b]: b for b in range(256)} | {a + b: 256 + n for n, (a, b) in enumerate(pairs)}
    return _byte_level(Tokenizer(models.BPE(vocabulary, pairs)))


def learned(merges: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with `merges` merges learned from TEXT."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # pyright: ignore
    alphabet = sorted(SIGN.values())
    trainer = trainers.BpeTrainer(vocab_size=256 + merges, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([TEXT], trainer)
    return _byte_level(backend)


def _byte_level(backend: Tokenizer) -> PreTrainedTokenizerFast:
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # pyright: ignore
    backend.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")


def llama_like() -> PreTrainedTokenizerFast:
    """SentencePiece's ways: a sign for the space, taken off at the beginning, and bytes for unknown characters.

    Token n is byte n, then come "▁" 256, "▁hello" 257, "▁world" 258, "é" 259, "!" 260, "<unk>" 261, "<eos>" 262.
    """
    pieces = [*(f"<0x{b:02X}>" for b in range(256)), "▁", "▁hello", "▁world", "é", "!", "<unk>"]
    backend = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "▁")  # pyright: ignore[reportAttributeAccessIssue]
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", unk_token="<unk>")


def eos(tokenizer: PreTrainedTokenizerBase) -> int:
    return int(tokenizer.eos_token_id)  # pyright: ignore[reportArgumentType]


def split(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> tuple[str, ...]:
    """The pieces of one completion, seen to be as many as the tokens and, joined, its text."""
    text = str(tokenizer.decode([i for i in ids if i != tokenizer.eos_token_id], skip_special_tokens=False))
    (pieces,) = token_texts(tokenizer, [ids])
    assert len(pieces) == len(ids)
    assert "".join(pieces) == text
    return pieces


def test_a_token_of_the_character_tokenizer_is_its_character_and_eos_is_nothing():
    tokenizer = character_tokenizer()
    assert split(tokenizer, [*tokenizer("12 + 3\n").input_ids, 1]) == ("1", "2", " ", "+", " ", "3", "\n", "")
    assert split(tokenizer, [1]) == ("",)


def test_an_id_without_a_token_is_nothing():
    """Models often have more logits than their tokenizer has tokens."""
    tokenizer = byte_level()
    assert split(tokenizer, [65, 5000, 66]) == ("A", "", "B")


@pytest.mark.parametrize("merges", [0, 4, 12, 40, 90])
def test_byte_level_pieces_join_to_the_text(merges):
    tokenizer = learned(merges)
    ids = tokenizer(TEXT).input_ids
    assert (len(ids) == len(TEXT.encode())) == (merges == 0)
    pieces = split(tokenizer, [*ids, eos(tokenizer)])
    assert "".join(pieces) == TEXT and pieces[-1] == ""


def test_a_character_spread_over_tokens_belongs_to_the_last_of_them():
    pieces = split(byte_level(), list("é中🙂x🙂".encode()))
    assert pieces == ("", "é", "", "", "中", "", "", "", "🙂", "x", "", "", "", "🙂")


def test_characters_that_no_token_boundary_separates_belong_to_the_last_token_of_them():
    tokenizer = byte_level("é".encode()[::-1])  # token 256 ends an é and begins the next
    assert split(tokenizer, [65, 0xC3, 256, 256, 0xA9, 66]) == ("A", "", "", "", "ééé", "B")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"a\xff\xffb", ("a", "\ufffd", "\ufffd", "b")),
        (b"a\x80\xc3", ("a", "\ufffd", "\ufffd")),
        ("中中".encode()[:-1], ("", "", "中", "", "\ufffd")),
        (b"\xc3\xc3\xc3\xa9", ("\ufffd", "\ufffd", "", "é")),
    ],
)
def test_bytes_that_are_no_character_are_where_they_were_written(data, expected):
    assert split(byte_level(), list(data)) == expected


def test_a_special_token_inside_a_character_does_not_break_it():
    tokenizer = byte_level()
    end = eos(tokenizer)
    assert split(tokenizer, [65, 0xC3, end, 0xA9, 66, end]) == ("A", "", "", "é", "B", "")


def test_random_bytes_join_to_the_text():
    tokenizer, draw = byte_level(b"\xa9\xc3", b"\xf0\x9f", b"\x98\x80", b"ab"), random.Random(0)
    common = [0x41, 0xC3, 0xA9, 0xE4, 0xB8, 0xAD, 0xF0, 0x9F, 0x98, 0x80, 0xFF, 256, 257, 258, 259]
    for _ in range(300):
        split(tokenizer, draw.choices(common, k=draw.randrange(1, 30)))


def test_sentencepiece_keeps_its_spaces_and_its_bytes():
    tokenizer = llama_like()
    assert split(tokenizer, [257, 258, 260, 256, 256, 258]) == ("hello", " world", "!", " ", " ", " world")
    assert split(tokenizer, [*"中".encode(), 259, 258, 262]) == ("", "", "中", "é", " world", "")
    assert split(tokenizer, [256, 258]) == ("", " world")


def test_neighbouring_characters_of_sentencepiece_are_told_apart():
    assert split(llama_like(), [*"中é🙂".encode(), 258]) == ("", "", "中", "", "é", "", "", "", "🙂", " world")


def test_one_broken_character_of_sentencepiece_breaks_its_neighbours_and_no_others():
    """Its bytes without a whole token between them are one U+FFFD each."""
    expected = ("", "é", " world", *"\ufffd" * 5, "!")
    assert split(llama_like(), [*"é".encode(), 258, *"中中".encode()[:-1], 260]) == expected


def test_texts_of_many_completions_keep_their_order():
    tokenizer = byte_level()
    rows = [list("aé".encode()), list(b"b"), list("中".encode())]
    assert token_texts(tokenizer, rows) == [("a", "", "é"), ("b",), ("", "", "中")]


def test_added_tokens_that_are_not_special_are_text():
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("<think>", special=False)])
    ids = [int(tokenizer.convert_tokens_to_ids("<think>")), *"é".encode()]  # pyright: ignore[reportArgumentType]
    assert split(tokenizer, ids) == ("<think>", "", "é")


@pytest.mark.parametrize(
    "ids",
    [
        lambda n: list(("中" * n).encode()),
        lambda n: [0xC3, *[256] * n, 0xA9],
        lambda n: [0xC3] * n,
        lambda n: [65, 0xC3, 0xA9] * n,
    ],
    ids=["spread characters", "no boundary between characters", "no characters", "mixed"],
)
def test_the_work_grows_with_the_tokens_and_no_faster(ids):
    """Counted in decoded tokens."""

    class Counting:
        eos_token_id = pad_token_id = None

        def __init__(self):
            self.inner, self.decoded = byte_level("é".encode()[::-1]), 0

        def decode(self, ids, **how):
            self.decoded += len(ids)
            return self.inner.decode(ids, **how)

    work = []
    for size in (200, 400):
        tokenizer = Counting()
        token_texts(tokenizer, [ids(size)])  # pyright: ignore[reportArgumentType]
        work.append(tokenizer.decoded)
    assert work[1] < 2.2 * work[0]


def test_whole_tokens_are_decoded_once_each_however_often_they_come():
    tokenizer = character_tokenizer()
    decoded = []

    class Noting:
        eos_token_id = pad_token_id = None

        def decode(self, ids, **how):
            decoded.append(tuple(ids))
            return tokenizer.decode(ids, **how)

    rows = [list(tokenizer("1212").input_ids), list(tokenizer("21").input_ids)]
    one, two = tokenizer("12").input_ids
    pieces = token_texts(Noting(), rows)  # pyright: ignore[reportArgumentType]
    assert pieces == [("1", "2", "1", "2"), ("2", "1")]
    assert sorted(decoded) == sorted([(one,), (one, one), (two,), (two, two)])


def test_a_text_that_was_not_sampled_has_the_tokens_it_would_be_written_with():
    assert of_text(byte_level(b"42"), "é = 42") == ("", "é", " ", "=", " ", "42", "")
    assert of_text(character_tokenizer(), "") == ("",)


def test_special_tokens_show_but_the_end_and_padding_do_not():
    """A tokenizer may have <think> as a special token, and a reward may look for it."""
    tokenizer = character_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>", "<|im_end|>"]})  # 99, 100, 101
    hidden = hidden_ids(tokenizer, [101])
    ids = [99, *tokenizer.encode("1+1"), 100, *tokenizer.encode(" 2"), 101]
    assert text_of(tokenizer, ids, hidden) == "<think>1+1</think> 2"
    assert TokenTexts(tokenizer, [101])(ids) == ("<think>", "1", "+", "1", "</think>", " ", "2", "")
    assert text_of(tokenizer, [0, 99, 1], hidden) == "<think>"  # <pad>, <think>, <eos>


def test_an_id_without_a_token_is_nothing_also_where_the_tokenizer_raises():
    tokenizer = ByT5Tokenizer()  # in Python: it raises for such ids
    with pytest.raises(ValueError):
        tokenizer.decode([100, 5000])
    a = tokenizer.encode("a", add_special_tokens=False)
    assert text_of(tokenizer, [*a, 5000, *a, 6000], frozenset()) == "aa"


def test_no_space_is_taken_away():
    """Tokenizers of words can be set to tidy "3 . 5" up, and what a model wrote is then not what is scored."""
    backend = Tokenizer(models.WordLevel({"<eos>": 0, "3": 1, ".": 2, "5": 3}, unk_token="<eos>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", clean_up_tokenization_spaces=True)
    assert tokenizer.decode([1, 2, 3]) == "3. 5"
    assert text_of(tokenizer, [1, 2, 3], frozenset()) == "3 . 5"
