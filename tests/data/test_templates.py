"""Templates: which one is used, and that text and tokens agree with no BOS doubled."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from rlhf_pg.data.templates import choose
from rlhf_pg.models.tokenizer import character_tokenizer

CHATML = (
    "{% for m in messages %}<im>{{ m.role }}\n{{ m.content }}</im>\n{% endfor %}"
    "{% if add_generation_prompt %}<im>assistant\n{% endif %}"
)
WITH_BOS = "{{ bos_token }}" + CHATML
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML


def tokenizer(chat_template: str | None = None):
    made = character_tokenizer()
    made.chat_template = chat_template
    return made


def tokenizer_with_bos(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """Words are tokens; writes <s> in front by itself, as Llama's does."""
    words = ["<s>", "</s>", "<unk>", "<im>", "</im>", "user", "system", "assistant", "What", "is", "1", "+", "?"]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore
    made.post_processor = processors.TemplateProcessing(  # pyright: ignore
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    wrapped.chat_template = chat_template
    return wrapped


def test_auto_is_the_chat_template_where_there_is_one():
    text, _ = choose("auto", tokenizer(CHATML), "Be right.").encode("1+1?", tokenizer())
    assert text == "<im>system\nBe right.</im>\n<im>user\n1+1?</im>\n<im>assistant\n"


def test_auto_is_the_r1_template_without_a_chat_template():
    template = choose("auto", tokenizer(), "unused")
    text, _ = template.encode("1+1?", tokenizer())
    assert template.name == "r1"
    assert text.endswith("User: 1+1? Assistant:")
    assert "<think> </think>" in text and "<answer> </answer>" in text


@pytest.mark.parametrize("chat", [CHATML, WITH_BOS])
@pytest.mark.parametrize("make", [tokenizer, tokenizer_with_bos])
def test_chat_tokens_are_those_of_apply_chat_template(make, chat):
    own = make(chat)
    _, tokens = choose("chat", own, "Be right.").encode("What is 1+1?", own)
    turns = [{"role": "system", "content": "Be right."}, {"role": "user", "content": "What is 1+1?"}]
    assert list(tokens) == own.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)


def test_bos_is_there_once_and_eos_never():
    for name in ("chat", "plain", "r1", "<s> {prompt}"):
        own = tokenizer_with_bos(WITH_BOS)
        _, tokens = choose(name, own, "Be right.").encode("What is 1+1?", own)
        assert tokens[0] == 0 and tokens.count(0) == 1 and 1 not in tokens


def test_plain_is_the_question_and_nothing_else():
    own = tokenizer()
    text, tokens = choose("plain", own, "unused").encode("12+34=", own)
    assert text == "12+34="
    assert own.convert_ids_to_tokens(list(tokens)) == list("12+34=")


def test_a_chat_template_that_refuses_a_system_turn_gets_the_instruction_in_the_users():
    template = choose("auto", tokenizer(NO_SYSTEM), "Be right.")
    assert "user's turn" in template.name
    assert template.render("1+1?") == "<im>user\n1+1?\nBe right.</im>\n<im>assistant\n"


def test_custom_text_may_hold_braces_and_the_question_is_not_a_template():
    template = choose("Solve {x}: {prompt}\n", tokenizer(), "unused")
    assert template.render("{prompt} {0}") == "Solve {x}: {prompt} {0}\n"


@pytest.mark.parametrize("text", ["charm", "Solve this:", "", "{ prompt }"])
def test_text_without_a_place_for_the_prompt_is_refused(text):
    with pytest.raises(ValueError, match=r"none of auto, chat, r1, plain and has no {prompt}"):
        choose(text, tokenizer(), "unused")


def test_chat_without_a_chat_template_is_refused():
    with pytest.raises(ValueError, match="no chat template"):
        choose("chat", tokenizer(), "unused")
