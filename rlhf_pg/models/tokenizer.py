"""The embedded tokenizer, with one token per character; nothing to download."""

from __future__ import annotations

from tokenizers.pre_tokenizers import ByteLevel
from transformers import Qwen2Tokenizer

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))  # newline and printable ASCII


def character_tokenizer() -> Qwen2Tokenizer:
    """Build the tokenizer of 99 tokens: <pad> 0, <eos> 1, <unk> 2, then CHARACTERS.

    decode(encode(text)) == text for text made of CHARACTERS; other characters are dropped. It adds no special token and
    has no BOS and no chat template. It is a Qwen2Tokenizer without merges, since every loader uses that class for a
    Qwen2 model folder, whatever class the saved files name.
    """
    spelled = [ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(c)[0][0] for c in CHARACTERS]
    return Qwen2Tokenizer(
        vocab={token: i for i, token in enumerate([PAD, EOS, UNKNOWN, *spelled])},
        merges=[],
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
