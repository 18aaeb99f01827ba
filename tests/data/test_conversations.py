"""Prompts that are conversations, and values in nested columns, as verl's files and chat data sets have them."""

import json
from typing import Any

import pytest
from chat_templates import CHATML, DEFAULT_SYSTEM, GEMMA, IN_PARTS, LLAMA_2, ONLY_USER, THINKING, characters

from rlhf_pg.data.prompts import load_rows, to_prompts
from rlhf_pg.tasks.base import BOXED_INSTRUCTION
from rlhf_pg.tasks.gsm8k import task as gsm8k

ROOM = dict(max_prompt_tokens=2000, context_length=4000, max_new_tokens=50)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def system(text):
    return {"role": "system", "content": text}


def verl(messages, gold: Any = "2"):
    """A row as verl's preprocessing scripts write it."""
    return {
        "data_source": "openai/gsm8k",
        "prompt": messages,
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": gold},
        "extra_info": {"split": "train", "index": 0, "answer": f"so #### {gold}"},
    }


def prompts(rows, chat: str | None = CHATML, **arguments):
    settings = {"split_name": "train", "prompt_column": "prompt", "answer_column": "reward_model.ground_truth", **ROOM}
    return to_prompts(rows, characters(chat), **{**settings, **arguments})


def text_of(messages, chat=CHATML, **arguments):
    return prompts([verl(messages)], chat, **arguments).prompts[0].text


@pytest.mark.parametrize(
    "messages",
    [
        [user("1+1?")],
        [system("Be brief."), user("1+1?")],
        [user("2+2?"), assistant("It is 4."), user("1+1?")],
        [system("Be brief."), user("2+2?"), assistant("4"), user("3+3?"), assistant("6"), user("1+1?")],
    ],
)
@pytest.mark.parametrize("chat", [CHATML, DEFAULT_SYSTEM, LLAMA_2.replace("bos_token + ", "")])
def test_messages_are_rendered_as_transformers_renders_them(messages, chat):
    expected = characters(chat).apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text_of(messages, chat) == expected


def test_the_row_stays_as_it_is_and_the_question_is_the_last_turn():
    row = verl([user("2+2?"), assistant("4"), user("1+1?")])
    columns = prompts([row]).prompts[0].columns
    assert columns == {**row, "question": "1+1?", "answer": "2"}


def test_a_task_adds_its_instruction_where_a_row_has_no_system_turn():
    def rendered(*turns):
        return "".join(f"<im>{t['role']}\n{t['content']}</im>\n" for t in turns) + "<im>assistant\n"

    ask, brief = user("1+1?"), system("Be brief.")
    assert text_of([ask], task="math") == rendered(system(BOXED_INSTRUCTION), ask)
    assert text_of([brief, ask], task="math") == rendered(brief, ask)
    assert text_of([ask]) == rendered(ask)  # no task, no instruction
    already = user(f"1+1? {BOXED_INSTRUCTION}")
    assert text_of([already], task="math") == rendered(already)
    few_shot = [user("2+2?"), assistant("4"), ask]
    assert text_of(few_shot, task="math") == rendered(system(BOXED_INSTRUCTION), *few_shot)


def test_what_a_template_refuses_or_drops_goes_into_a_users_turn():
    few_shot = [user("2+2?"), assistant("4"), user("1+1?")]
    made = prompts([verl(few_shot)], GEMMA, task="math")
    assert made.template == "chat (instruction in the user's turn)"
    assert made.prompts[0].text.endswith(f"user\n1+1?\n{BOXED_INSTRUCTION}<end_of_turn>\n<start_of_turn>model\n")
    made = prompts([verl([system("Be brief."), *few_shot])], GEMMA)
    assert made.template == "chat (system turns in the user's)"
    assert "<start_of_turn>user\nBe brief.\n\n2+2?<end_of_turn>\n<start_of_turn>model\n4" in made.prompts[0].text
    assert prompts([verl([system("Be brief."), *few_shot])], GEMMA, task="math").template == made.template
    made = prompts([verl([system("Be brief."), user("1+1?")])], ONLY_USER)
    assert made.prompts[0].text == "[USER]Be brief.\n\n1+1?\n[BOT]"
    with pytest.raises(ValueError, match=r"train, row 0: .*lacks the assistant turn 'It is 4\.'"):
        prompts([verl([user("2+2?"), assistant("It is 4."), user("1+1?")])], ONLY_USER)


def test_an_earlier_thought_may_be_left_out_as_thinking_models_do():
    turns = [user("2+2?"), assistant("<think>hm</think>\n\nIt is 4."), user("1+1?")]
    assert "<im>assistant\nIt is 4.</im>" in text_of(turns, THINKING)


@pytest.mark.parametrize("chat", [CHATML, IN_PARTS])
def test_content_in_parts_is_text(chat):
    parts = [{"type": "text", "text": "1+1?"}]
    assert text_of([user(parts)], chat) == "<im>user\n1+1?</im>\n<im>assistant\n"
    with pytest.raises(ValueError, match=r"message 1 has a part that is no text: .*image"):
        text_of([user([{"type": "image", "image": "a.png"}, *parts])], chat)


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ([], r"prompt column 'prompt' is \[\]; text, a number or a list of messages is needed"),
        ([user("1+1?"), "2"], r"message 2 is '2'; each must be {'role'"),
        ([{"from": "human", "value": "1+1?"}], r"message 1 has the keys 'from', 'value'; each must be {'role'"),
        ([{"role": "human", "content": "1+1?"}], r"message 1 has the role 'human'; the roles are system, .*user"),
        ([{"role": "User", "content": "1+1?"}], r"message 1 has the role 'User'.*did you mean 'user'"),
        ([user("1+1?"), assistant("2")], r"the last of 2 messages is the assistant's; a prompt ends with the user's"),
        ([system("Be brief.")], r"the last of 1 messages is the system's"),
        ([user(None)], r"message 1 \(user\) has 'None' as content; text is needed"),
        ([user("  ")], r"the user's last message is empty"),
        ([user(3)], r"message 1 \(user\) has '3' as content"),
    ],
)
def test_wrong_messages_are_refused_with_row_and_message(tmp_path, messages, told):
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join(json.dumps(verl(m)) for m in ([user("1+1?")], messages)))
    with pytest.raises(ValueError, match=rf"d\.jsonl:2: .*{told}"):
        prompts(load_rows(path=path))


@pytest.mark.parametrize(
    ("template", "chat", "told"),
    [
        ("auto", None, "this tokenizer has none, so the template is r1; use a tokenizer that has one"),
        ("plain", CHATML, "the template is plain"),
        ("Q: {prompt}", CHATML, "the template is custom"),
    ],
)
def test_messages_without_a_chat_template_are_refused(template, chat, told):
    with pytest.raises(ValueError, match=f"train, row 0: a list of messages takes a chat template, and {told}"):
        prompts([verl([user("1+1?")])], chat, template=template)


def test_a_task_with_a_text_template_of_its_own_leaves_messages_to_the_chat_template():
    made = prompts([verl([user("3 5 7 -> 22:")], "22")], task="countdown")
    assert made.template == "chat"


def test_options_reach_the_template():
    text = text_of([user("1+1?")], THINKING, template_options={"enable_thinking": False})
    assert text == "<im>user\n1+1?</im>\n<im>assistant\n<think>\n\n</think>\n\n"
    with pytest.raises(ValueError, match=r"data\.train: template_options\.thinking: .* did you mean 'enable_thinking'"):
        text_of([user("1+1?")], THINKING, template_options={"thinking": False})


def test_a_parquet_file_gives_the_rows_of_the_jsonl_file(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [verl([system("Be brief."), user("1+1?")]), verl([user("2+2?"), assistant("4"), user("3+3?")], "6")]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "d.parquet")
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "d.json").write_text(json.dumps(rows))
    made = [prompts(load_rows(path=tmp_path / f"d.{kind}")).prompts for kind in ("parquet", "jsonl", "json")]
    assert made[0] == made[1] == made[2]
    assert [p.columns["answer"] for p in made[0]] == ["2", "6"]
    nested = prompts(load_rows(path=tmp_path / "d.parquet"), answer_column="extra_info.answer").prompts
    assert [p.columns["answer"] for p in nested] == ["so #### 2", "so #### 6"]
    assert nested[0].columns["reward_model"] == {"style": "rule", "ground_truth": "2"}


def test_arrays_of_numpy_json_and_columns_of_turns_are_lists_of_messages():
    import numpy

    turns = [system("Be brief."), user("1+1?")]
    expected = text_of(turns)
    assert text_of(numpy.array(turns, dtype=object)) == expected
    assert text_of(tuple(turns)) == expected
    assert text_of({"role": ["system", "user"], "content": ["Be brief.", "1+1?"], "name": None}) == expected
    assert text_of(json.dumps(turns)) == expected
    assert '[1, 2, "role"] has how many?' in text_of('[1, 2, "role"] has how many?')
    with pytest.raises(
        ValueError, match="row 0: prompt column 'prompt': 2 times 'role', 1 times 'content' in one list"
    ):
        text_of({"role": ["system", "user"], "content": ["1+1?"]})
    assert prompts([verl(turns, numpy.int64(2))]).prompts[0].columns["answer"] == "2"


def test_a_task_reads_its_gold_from_a_nested_column_by_name():
    made = prompts([verl([user("1+1?")])], task=gsm8k)
    assert made.prompts[0].columns["answer"] == "2"


def test_a_column_named_with_a_dot_wins_over_a_nested_one():
    row = {"q": {"text": "nested", "parts": ["a", "b"]}, "q.text": "flat", "a.b": {"c": 3}}

    def question(column):
        return prompts([row], None, prompt_column=column, answer_column="a.b.c").prompts[0].columns["question"]

    assert question("q.text") == "flat"
    assert question("q.parts.1") == "b"
    assert prompts([row], None, prompt_column="q.text", answer_column="a.b.c").prompts[0].columns["answer"] == "3"


@pytest.mark.parametrize(
    ("column", "told"),
    [
        ("reward_model.truth", r"no answer column 'reward_model\.truth'; .*'reward_model\.ground_truth'"),
        ("reward.ground_truth", r"no answer column 'reward\.ground_truth'"),
        ("data_source.x", r"no answer column 'data_source\.x'"),
        ("reward_model", r"answer column 'reward_model' is {.*; in it are .*'reward_model\.ground_truth'"),
        ("reward_model.", r"no answer column"),
    ],
)
def test_a_wrong_nested_column_is_refused_with_those_there_are(column, told):
    with pytest.raises(ValueError, match=f"train, row 0: {told}"):
        prompts([verl([user("1+1?")])], answer_column=column)


def test_a_null_in_a_nested_column_is_refused_with_its_row():
    rows = [verl([user("1+1?")]), {**verl([user("1+1?")]), "reward_model": None}]
    with pytest.raises(ValueError, match=r"train, row 1: no answer column 'reward_model\.ground_truth'"):
        prompts(rows)
    with pytest.raises(ValueError, match=r"train, row 1: answer column 'reward_model\.ground_truth' is None"):
        prompts([verl([user("1+1?")]), verl([user("1+1?")], None)])


def test_an_instruction_takes_the_place_of_the_tasks():
    rows = [{"question": "1+1?", "answer": "#### 2"}]

    def text(**arguments):
        settings = {"prompt_column": None, "answer_column": None, "task": gsm8k, "template": "chat", **arguments}
        return prompts(rows, **settings).prompts[0].text

    question = "<im>user\n1+1?</im>\n<im>assistant\n"
    assert text() == f"<im>system\n{BOXED_INSTRUCTION}</im>\n{question}"
    assert text(instruction="Be brief.") == f"<im>system\nBe brief.</im>\n{question}"
    assert text(instruction="") == question


def test_an_instruction_is_for_conversations_without_a_system_turn():
    assert text_of([user("1+1?")], instruction="Be brief.") == text_of([system("Be brief."), user("1+1?")])
    own = [system("Think."), user("1+1?")]
    assert text_of(own, instruction="Be brief.") == text_of(own)


def test_an_instruction_without_a_chat_template_is_refused():
    with pytest.raises(ValueError, match=r"data\.train: instruction: a turn of a chat template, .* template is r1"):
        to_prompts(
            [{"q": "1+1?", "a": "2"}],
            characters(None),
            split_name="train",
            prompt_column="q",
            answer_column="a",
            instruction="Be brief.",
            max_prompt_tokens=2000,
            context_length=4000,
            max_new_tokens=50,
        )
