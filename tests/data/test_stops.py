"""Which tokens end a completion, and tokens that a model has no row for."""

from types import SimpleNamespace
from typing import Any

import pytest

from rlhf_pg.data.stops import check_tokens, eos_ids
from rlhf_pg.models.tokenizer import character_tokenizer

TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def tokenizer(eos: int | None = None) -> Any:
    return SimpleNamespace(eos_token_id=eos, chat_template=None)


def config(eos: Any = None) -> Any:
    return SimpleNamespace(eos_token_id=eos)


def chat_tokenizer(template: str = TURNS) -> Any:
    letters = character_tokenizer()  # 99 tokens, <eos> is 1
    letters.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})  # 99, 100
    letters.chat_template = template
    return letters


def test_every_end_token_of_tokenizer_config_and_generation_config_counts_once():
    assert eos_ids(tokenizer(eos=5), config(7), config([7, 5, 9])) == ((5, 7, 9), [])
    assert eos_ids(tokenizer(), config(0)) == ((0,), [])
    assert eos_ids(character_tokenizer(), None) == ((1,), [])


def test_no_end_token_at_all_is_refused():
    with pytest.raises(ValueError, match="no end-of-sequence token"):
        eos_ids(tokenizer(), config(), SimpleNamespace())


def test_an_end_token_that_the_model_cannot_sample_is_left_out_and_said():
    stops, [note] = eos_ids(tokenizer(eos=5), config([5, 100]), vocabulary=100)
    assert stops == (5,)
    assert "stop token 100" in note and "vocabulary of 100" in note


def test_only_end_tokens_that_the_model_cannot_sample_are_refused_with_id_and_size():
    with pytest.raises(ValueError, match=r"no end-of-sequence token.*stop token 151645.*vocabulary of 99"):
        eos_ids(tokenizer(eos=151645), config(), vocabulary=99)


def test_the_token_that_ends_a_turn_of_the_chat_template_ends_a_completion_too():
    stops, [note] = eos_ids(chat_tokenizer(), vocabulary=101)
    assert stops == (1, 100)
    assert "'<|im_end|>' (100)" in note and "chat template" in note


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",  # no special token after the answer
        "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}<eos>{% endif %}{% endfor %}",
        "{{ raise_exception('only system turns') }}",
        "<|im_start|>{% for m in messages %}{{ m.role }}{% endfor %}<|im_end|>",  # answers are not printed
        "{% for m in messages if m.role == 'user' %}{{ m.content }}<|im_end|>{% endfor %}",
        "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}{% if x.y.z %}{% endif %}",  # a broken template
    ],
)
def test_a_template_without_another_turn_end_adds_none(template: str):
    assert eos_ids(chat_tokenizer(template), vocabulary=101) == ((1,), [])


def test_a_turn_end_that_is_named_already_is_not_noted():
    assert eos_ids(chat_tokenizer(), config(100), vocabulary=101) == ((1, 100), [])


def test_a_token_without_an_embedding_is_refused_with_both_sizes():
    with pytest.raises(ValueError, match=r"train/3 has token 100 \('<\|im_end\|>'\).*embeddings for 99.*101"):
        check_tokens([5, 100, 7], "train/3", chat_tokenizer(), vocabulary=99)
    check_tokens([5, 100, 7], "train/3", chat_tokenizer(), vocabulary=101)
    check_tokens([], "train/3", chat_tokenizer(), vocabulary=99)
