"""One BOS in front of a prompt, where the tokenizer or the template puts one, for tokenizers of several conventions."""

import pytest
from chat_templates import CHATML, LLAMA_2, characters, sentencepiece_like, words

from rlhf_pg.data.templates import choose

LLAMA = dict(single="<s> $A", bos_token="<s>", eos_token="</s>")
ADDS_EOS = dict(single="<s> $A </s>", bos_token="<s>", eos_token="</s>")
ONLY_EOS = dict(single="$A </s>", bos_token="<s>", eos_token="</s>")  # T5's
GPT_2 = dict(single="$A", bos_token="<|endoftext|>", eos_token="<|endoftext|>")
OPT = dict(single="</s> $A", bos_token="</s>", eos_token="</s>")  # its BOS is the EOS
BERT = dict(single="[CLS] $A [SEP]", cls_token="[CLS]", sep_token="[SEP]")  # no BOS by name
GLM = dict(single="[gMASK] <sop> $A", eos_token="<eop>")  # two tokens in front


def first(made, template, question="What is 1 + 2 ?"):
    _, tokens = choose(template, made, "Be right.").encode(question, made)
    return made.convert_ids_to_tokens(list(tokens))


@pytest.mark.parametrize(
    ("tokens", "kind", "front"),
    [
        (["<s>", "</s>"], LLAMA, ["<s>"]),
        (["<s>", "</s>"], ADDS_EOS, ["<s>"]),
        (["<s>", "</s>"], ONLY_EOS, []),
        (["<|endoftext|>"], GPT_2, []),
        (["</s>"], OPT, ["</s>"]),
        (["[CLS]", "[SEP]"], BERT, ["[CLS]"]),
        (["[gMASK]", "<sop>", "<eop>"], GLM, ["[gMASK]", "<sop>"]),
    ],
)
def test_text_begins_as_the_tokenizer_begins_text_written_out_or_not(tokens, kind, front):
    made = words(*tokens, **kind)
    question = ["What", "is", "1", "+", "2", "?"]
    assert first(made, "plain") == front + question
    assert first(made, "{prompt}") == front + question
    written = " ".join(front)
    assert first(made, f"{written} {{prompt}}") == front + question
    assert first(made, f"\n {written} {{prompt}}") == front + question
    assert first(made, f"{written}\n[INST] {{prompt}} [/INST]") == [*front, "[INST]", *question, "[/INST]"]


def test_a_bos_that_only_the_template_writes_is_there_once():
    made = words("<|endoftext|>", **GPT_2)
    assert first(made, "<|endoftext|> {prompt}")[:2] == ["<|endoftext|>", "What"]


def test_a_question_that_begins_with_the_bos_gets_no_second():
    assert first(words("<s>", "</s>", **LLAMA), "plain", "<s> What is 1 + 2 ?")[:2] == ["<s>", "What"]


def test_a_tokenizer_that_puts_a_space_before_words_gives_the_tokens_of_its_own_encoding():
    made = sentencepiece_like()
    assert first(made, "plain", "What is 1") == ["<s>", "▁What", "▁is", "▁1"]
    assert first(made, "<s>{prompt}", "What is 1") == ["<s>", "▁What", "▁is", "▁1"]
    assert made("What is 1").input_ids == made.convert_tokens_to_ids(["<s>", "▁What", "▁is", "▁1"])


def test_the_embedded_tokenizer_has_none():
    assert first(characters(), "plain", "1+1") == list("1+1")


def test_a_chat_gets_the_bos_it_writes_and_no_other():
    own = words("<s>", "</s>", chat_template=LLAMA_2.replace("bos_token +", "bos_token + ' ' +"), **LLAMA)
    assert first(own, "chat").count("<s>") == 1
    assert choose("chat", own, "Be right.").remarks(own) == []


@pytest.mark.parametrize("kind", [LLAMA, ADDS_EOS])
def test_a_chat_template_that_omits_the_tokenizers_bos_is_said(kind):
    own = words("<s>", "</s>", chat_template=CHATML, **kind)
    assert "<s>" not in first(own, "chat")  # as transformers' apply_chat_template has it
    assert choose("chat", own, "Be right.").remarks(own) == [
        "no <s> in front, which the tokenizer adds but its chat template omits"
    ]
    for silent in (words("<s>", "</s>", chat_template=CHATML, **ONLY_EOS), characters(CHATML)):
        assert choose("chat", silent, "Be right.").remarks(silent) == []
