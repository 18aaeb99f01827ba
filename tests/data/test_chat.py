"""Chat templates of others: everything that goes in is in the prompt, and what is broken is named with its line."""

import importlib.util
import re
from pathlib import Path

import pytest
from chat_templates import (
    AS_JSON,
    CHATML,
    CUTS_CONTENT,
    DATED,
    DEFAULT_SYSTEM,
    ESCAPED,
    GEMMA,
    GEMMA_IN_PARTS,
    IGNORES_CONTENT,
    IN_PARTS,
    LLAMA_2,
    ONLY_LAST,
    ONLY_USER,
    OVERRIDES_SYSTEM,
    THINKING,
    characters,
)

from rlhf_pg.data.templates import choose

ORDER = "Be right, and be brief."
SYSTEM = "chat"
USER = "chat (instruction in the user's turn)"


@pytest.mark.parametrize(
    ("chat", "name", "text"),
    [
        (CHATML, SYSTEM, f"<im>system\n{ORDER}</im>\n<im>user\n1+1?</im>\n<im>assistant\n"),
        (DEFAULT_SYSTEM, SYSTEM, f"<im>system\n{ORDER}</im>\n<im>user\n1+1?</im>\n<im>assistant\n"),
        (
            OVERRIDES_SYSTEM,
            USER,
            f"<im>system\nYou are helpful.</im>\n<im>user\n1+1?\n{ORDER}</im>\n<im>assistant\n",
        ),
        (ONLY_USER, USER, f"[USER]1+1?\n{ORDER}\n[BOT]"),
        (ONLY_LAST, USER, f"[USER]1+1?\n{ORDER}[BOT]"),
        (GEMMA, USER, f"<start_of_turn>user\n1+1?\n{ORDER}<end_of_turn>\n<start_of_turn>model\n"),
        (LLAMA_2, SYSTEM, f"[INST] <<SYS>>\n{ORDER}\n<</SYS>>\n\n1+1? [/INST]"),
        (THINKING, SYSTEM, f"<im>system\n{ORDER}</im>\n<im>user\n1+1?</im>\n<im>assistant\n"),
        (IN_PARTS, SYSTEM, f"<im>system\n{ORDER}</im>\n<im>user\n1+1?</im>\n<im>assistant\n"),
        (GEMMA_IN_PARTS, USER, f"<im>user\n1+1?\n{ORDER}</im>\n<im>assistant\n"),
    ],
)
def test_the_instruction_is_in_the_prompt_once_as_a_system_turn_or_at_the_end_of_the_users(chat, name, text):
    own = characters(chat)
    own.bos_token, own.eos_token = "", "<eos>"
    template = choose("auto", own, ORDER)
    assert template.render("1+1?") == text
    assert template.name == name


@pytest.mark.parametrize("chat", [IGNORES_CONTENT, CUTS_CONTENT])
def test_a_template_that_loses_the_question_is_refused(chat):
    with pytest.raises(
        ValueError, match=r"what it renders lacks the user turn 'What is.*; mend it, or set template to"
    ):
        choose("chat", characters(chat), ORDER)


def test_a_template_that_loses_some_questions_is_refused_at_the_first():
    template = choose("chat", characters(CHATML.replace("m.content", "m.content[:40]")), ORDER)
    assert "1+1?" in template.render("1+1?")
    with pytest.raises(ValueError, match=r"lacks the user turn '1 \+ 1 \+ .*\.\.\.'"):
        template.render("1 + " * 20 + "1?")


@pytest.mark.parametrize("chat", [ESCAPED, AS_JSON])
def test_escaped_text_is_not_lost_text(chat):
    question = 'Is 1 < 2 & "3 > 2"?\n\\frac{1}{2} isn\'t é'
    template = choose("chat", characters(chat), ORDER)
    assert template.name == "chat"
    assert "3 " in template.render(question)


def test_a_trimmed_question_is_not_lost():
    assert choose("chat", characters(GEMMA), ORDER).render("  1+1?  \n").startswith("<start_of_turn>user\n1+1?")


@pytest.mark.parametrize(
    ("chat", "told"),
    [
        ("\n{% for m in messages %}\n{% if %}\n{% endfor %}", r"line 3, `{% if %}`: Expected an expression"),
        ("{% for m in messages %}\n{{ m.content }}", r"line \d.*Unexpected end of template"),
        ("{{ messages | nofilter }}", r"line 1, `.*`: No filter named 'nofilter'"),
        ("A\nB\n{{ messages[0].tool.name }}\n", r"line 3, `{{ messages\[0\]\.tool\.name }}`: 'dict object' has no"),
        ("A\n{{ messages[0].content + 1 }}", r"line 2, `.*`: TypeError: can only concatenate str"),
        ("{% macro f(m) %}\n{{ m.x.y }}\n{% endmacro %}\n{{ f(messages[0]) }}", r"line 2, `{{ m\.x\.y }}`"),
        ("\n\n{{ raise_exception('only for pictures') }}", r"line 3, `.*`: only for pictures"),
        ("{{ messages[0].__class__.__mro__ }}", r"line 1, .* is unsafe"),
    ],
)
def test_an_error_of_a_template_names_tokenizer_line_and_remedy(chat, told):
    with pytest.raises(
        ValueError, match=rf"chat template of some/model, {told}.*; mend it, or set template to r1, plain"
    ):
        choose("chat", characters(chat, "some/model"), ORDER)


def test_an_error_of_a_template_names_its_file(tmp_path):
    from transformers import AutoTokenizer

    characters("{{ x.y }}").save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=rf"chat template of {re.escape(str(tmp_path))} \(chat_template\.jinja\), line 1"
    ):
        choose("auto", loaded, ORDER)
    characters({"default": CHATML, "tool_use": "{{ tools.x.y }}"}).save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert choose("auto", loaded, ORDER).name == "chat"
    with pytest.raises(ValueError, match=r"\(additional_chat_templates/tool_use\.jinja\), line 1"):
        choose("auto", loaded, ORDER, {"tools": []})


def test_of_several_templates_the_default_is_used_and_one_is_needed():
    assert (
        choose("auto", characters({"rag": "{{ x.y }}", "default": CHATML}), ORDER).render("1").endswith("assistant\n")
    )
    with pytest.raises(ValueError, match="has chat templates rag, tool_use, but none named default"):
        choose("auto", characters({"rag": CHATML, "tool_use": CHATML}), ORDER)


def test_options_are_the_templates_variables():
    off = choose("auto", characters(THINKING), ORDER, {"enable_thinking": False}).render("1+1?")
    on = choose("auto", characters(THINKING), ORDER, {"enable_thinking": True}).render("1+1?")
    assert off == on + "<think>\n\n</think>\n\n"


def test_an_option_that_the_template_never_mentions_is_refused_with_the_nearest():
    with pytest.raises(
        ValueError, match=r"template_options\.enable_thinkin: .*never mentions it; .*mean 'enable_thinking'"
    ):
        choose("auto", characters(THINKING), ORDER, {"enable_thinkin": False})
    with pytest.raises(ValueError, match=r"template_options\.enable_thinking: .*never mentions it; it has none to set"):
        choose("auto", characters(CHATML), ORDER, {"enable_thinking": False})
    for set_by_the_product in ("messages", "add_generation_prompt", "tokenize"):
        with pytest.raises(ValueError, match=f"template_options.{set_by_the_product}"):
            choose("auto", characters(CHATML + "{% if tokenize %}{% endif %}"), ORDER, {set_by_the_product: False})


def test_a_variable_that_the_template_sets_itself_is_an_option_only_where_it_looks_for_one_first():
    own = "{% if messages %}{% set tail = '!' %}{% endif %}{{ tail }}" + CHATML
    with pytest.raises(ValueError, match=r"template_options\.tail: .*it has none to set"):
        choose("auto", characters(own), ORDER, {"tail": "?"})
    looks = "{% if tail is not defined %}{% set tail = '!' %}{% endif %}{{ tail }}" + CHATML
    assert choose("auto", characters(looks), ORDER, {"tail": "?"}).render("1+1").startswith("?<im>")
    default = "{% set tail = tail | default('!') %}{{ tail }}" + CHATML
    assert choose("auto", characters(default), ORDER, {"tail": "?"}).render("1+1").startswith("?<im>")


def trl_templates():
    spec = importlib.util.find_spec("trl")
    folders = spec.submodule_search_locations if spec else None
    paths = Path(folders[0]).glob("chat_templates/*.jinja") if folders else []
    return sorted(path for path in paths if not path.stem.endswith("_training"))


@pytest.mark.parametrize("path", trl_templates(), ids=lambda path: path.stem)
def test_templates_of_real_models_print_all_of_a_conversation(path):
    """Those that TRL ships; none where it is not installed."""
    own = characters(path.read_text())
    own.bos_token = "<s>"
    assert choose("auto", own, ORDER).name == (USER if path.stem == "gemma" else SYSTEM)
    turns = [("system", "Be brief."), ("user", "2+2?"), ("assistant", "It is 4."), ("user", "1+1?")]
    text = choose("auto", own, "").render([{"role": role, "content": content} for role, content in turns])
    places = [text.index(content) for _, content in turns]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("template", "chat", "told"),
    [
        ("plain", CHATML, "the template is plain"),
        ("{prompt}", CHATML, "the template is custom"),
        ("auto", None, "this tokenizer has none, so the template is r1"),
    ],
)
def test_options_without_a_chat_template_are_refused(template, chat, told):
    with pytest.raises(ValueError, match=f"template_options: variables of a chat template, and {told}"):
        choose(template, characters(chat), ORDER, {"enable_thinking": False})


@pytest.mark.parametrize("chat", [DATED, "{{ strftime_now('Today Date: %d %b %Y') }}\n" + CHATML])
def test_a_dated_template_gives_the_same_prompt_every_day_and_says_so(chat):
    template = choose("auto", characters(chat), ORDER)
    assert template.render("1+1?").startswith("Today Date: 26 Jul 2024\n<im>system")
    assert template.remarks(characters(chat)) == [
        "dated 26 Jul 2024 always, as its template asks for the day and prompts must not change"
    ]
    assert choose("auto", characters(CHATML), ORDER).remarks(characters(CHATML)) == []


def test_a_date_of_ones_own_is_an_option_where_the_template_has_it():
    template = choose("auto", characters(DATED), ORDER, {"date_string": "1 Jan 2000"})
    assert template.render("1+1?").startswith("Today Date: 1 Jan 2000\n")
    assert template.remarks(characters(DATED)) == []
