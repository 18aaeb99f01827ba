"""The character tokenizer: one character a token, exact round trip, the same after saving in any model folder."""

import pytest
from tokenizers.decoders import DecodeStream
from transformers import AutoTokenizer, LlamaConfig, Qwen2Config, Qwen3Config

from rlhf_pg.models.tokenizer import CHARACTERS, character_tokenizer

TRICKY = CHARACTERS + "  don't , stop . \n\n \n 12+34=46 'll 've <eo s> \n"


def test_a_character_is_a_token_and_ids_are_fixed():
    tokenizer = character_tokenizer()
    assert len(tokenizer) == 99
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert tokenizer(CHARACTERS).input_ids == list(range(3, 99))
    assert len(tokenizer(TRICKY).input_ids) == len(TRICKY)


def test_decoding_gives_the_text_back_exactly():
    tokenizer = character_tokenizer()
    assert tokenizer.decode(tokenizer(TRICKY).input_ids) == TRICKY
    assert tokenizer.decode([*tokenizer("1 , 2").input_ids, 1], skip_special_tokens=True) == "1 , 2"


@pytest.mark.parametrize("config", [None, Qwen2Config(), LlamaConfig(), Qwen3Config()])
def test_it_loads_the_same_from_a_folder_whatever_model_is_there(tmp_path, config):
    """Loaders pick the tokenizer's class by the model's type: for Qwen2 the class named in the files is overruled."""
    if config is not None:
        config.save_pretrained(tmp_path)
    character_tokenizer().save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded(TRICKY).input_ids == character_tokenizer()(TRICKY).input_ids
    assert loaded.decode(loaded(TRICKY).input_ids) == TRICKY
    assert (loaded.pad_token_id, loaded.eos_token_id, loaded.bos_token_id) == (0, 1, None)
    assert loaded.chat_template is None


def test_streaming_decoding_gives_the_same_text():
    """What serving engines use."""
    tokenizer = character_tokenizer()
    stream = DecodeStream(skip_special_tokens=True)
    ids = [*tokenizer(TRICKY).input_ids, tokenizer.eos_token_id]
    assert "".join(stream.step(tokenizer.backend_tokenizer, i) or "" for i in ids) == TRICKY  # pyright: ignore
