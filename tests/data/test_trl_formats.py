"""Data sets as TRL's trainers take them: prompt-only, prompt and completion, messages, text."""

import json
from typing import Any

import pytest
from chat_templates import CHATML, characters

from rlhf_pg import config
from rlhf_pg.commands.run_sft import _examples
from rlhf_pg.data.prompts import load_rows, to_prompts
from rlhf_pg.models.export import save_model
from rlhf_pg.models.load import tiny_model

LIMITS: Any = dict(max_prompt_tokens=200, context_length=400, max_new_tokens=8)
ASK = [{"role": "user", "content": "1+1?"}]
REPLY = [{"role": "assistant", "content": "It is 2."}]
RENDERED = "<im>user\n1+1?</im>\n<im>assistant\n"


def prompts(rows, **arguments):
    return to_prompts(rows, characters(CHATML), split_name="train", **LIMITS, **arguments)


def test_prompt_only_messages_need_no_names():
    made = prompts([{"prompt": ASK, "answer": "2"}])
    assert made.prompts[0].text == RENDERED
    assert made.prompts[0].columns["answer"] == "2"


@pytest.mark.parametrize("column", ["prompt", "question", "problem"])
def test_questions_under_their_usual_names_need_no_names_either(column):
    assert prompts([{column: "1+1?", "answer": "2"}]).prompts[0].columns["question"] == "1+1?"
    with pytest.raises(ValueError, match=f"row 1: no prompt column '{column}'"):
        prompts([{column: "1+1?", "answer": "2"}, {"other": "1+1?", "prompt_": "1", "answer": "2"}])


def test_messages_that_end_with_the_assistant_are_asked_without_that_turn():
    made = prompts([{"messages": [*ASK, *REPLY], "answer": "2"}, {"messages": ASK, "answer": "2"}])
    assert [p.text for p in made.prompts] == [RENDERED, RENDERED]
    assert [p.columns["question"] for p in made.prompts] == ["1+1?", "1+1?"]
    assert made.remarks[0] == "the assistant's last turn of 1 conversation is no part of the prompt"


def test_a_prompt_that_ends_with_the_assistant_is_refused():
    """TRL lets the model continue that turn, which nothing here does."""
    with pytest.raises(ValueError, match=r"prompt column 'prompt': the last of 2 messages is the assistant's"):
        prompts([{"prompt": [*ASK, *REPLY], "answer": "2"}])
    with pytest.raises(ValueError, match=r"prompt column 'messages': before the assistant's last turn"):
        prompts([{"messages": REPLY, "answer": "2"}])


def examples(folder, rows, completion=None, **source):
    tokenizer = characters(CHATML)
    save_model(tiny_model(seed=0, vocabulary=len(tokenizer)), tokenizer, folder / "model")
    file = folder / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    raw = {
        "run": {"dir": str(folder / "run")},
        "model": {"path": str(folder / "model")},
        "data": {"train": {"path": str(file), **source}},
        "sft": {"completion": completion} if completion else {},
    }
    made, notes = _examples(config.parse(raw, config.SftRecipe), tokenizer)
    texts = [
        (str(tokenizer.decode(list(e.prompt.tokens))), str(tokenizer.decode(e.completion.tokens.tolist())))
        for e in made
    ]
    return texts, notes


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": ASK, "completion": REPLY},
        {"prompt": ASK, "completion": "It is 2."},
        {"messages": [*ASK, *REPLY]},
        {"prompt": ASK, "chosen": REPLY, "rejected": ASK},
    ],
)
def test_a_cold_start_teaches_the_assistants_turn(tmp_path, row):
    completion = "chosen" if "chosen" in row else None
    [(prompt, text)], _ = examples(tmp_path, [row], completion)
    assert prompt == RENDERED
    assert text.startswith("It is 2.") and len(text) > len("It is 2.")  # and the token that ends


def test_of_several_turns_the_last_is_taught_and_the_others_are_context(tmp_path):
    earlier = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
    [(prompt, text)], _ = examples(tmp_path, [{"messages": [*earlier, *ASK, *REPLY]}])
    assert prompt == "<im>user\n2+2?</im>\n<im>assistant\n4</im>\n" + RENDERED
    assert text.startswith("It is 2.")


def test_prompt_and_completion_in_text_are_put_together_as_they_are(tmp_path):
    [(prompt, text)], _ = examples(tmp_path, [{"prompt": "The sky is", "completion": " blue."}], template="plain")
    assert (prompt, text[: len(" blue.")]) == ("The sky is", " blue.")


def test_plain_text_is_taught_whole(tmp_path):
    [(prompt, text)], notes = examples(tmp_path, [{"text": "The sky is blue."}])
    assert (prompt + text).startswith("The sky is blue.") and len(prompt) == 1
    assert text.startswith("he sky is blue.") and len(text) > len("he sky is blue.")
    assert notes[0] == "data.train: 1 text of column 'text', each taught whole from its second token on"


@pytest.mark.parametrize(
    ("row", "source", "told"),
    [
        ({"query": "1+1?"}, {}, r"rows\.jsonl: .*name the prompt column.*'query'"),
        ({"prompt": ASK}, {}, r"sft\.completion: no column 'completion'"),
        ({"messages": ASK}, {}, r"sft\.completion: no column 'completion'.*assistant"),
        ({"prompt": ASK, "completion": [*REPLY, *ASK]}, {}, r"train/0.*one message of the assistant"),
        ({"prompt": ASK, "completion": ASK}, {}, r"train/0.*one message of the assistant"),
        ({"text": "x"}, {"template": "plain"}, r"data\.train\.template: .*whole"),
        ({"text": ["x"]}, {}, r"rows\.jsonl:1: column 'text'"),
        ({"text": "x"}, {"prompt": "question"}, r"rows\.jsonl:1: no prompt column 'question'"),
    ],
)
def test_what_cannot_be_taught_is_said(tmp_path, row, source, told):
    with pytest.raises(ValueError, match=told):
        examples(tmp_path, [row], **source)


def test_rows_of_a_saved_trl_data_set_are_read_the_same(tmp_path):
    from datasets import Dataset

    Dataset.from_list([{"prompt": ASK, "answer": "2"}] * 3).save_to_disk(tmp_path / "s")
    assert [p.text for p in prompts(load_rows(path=tmp_path / "s")).prompts] == [RENDERED] * 3
