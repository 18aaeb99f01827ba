"""The chat template that comes with a tokenizer: whatever goes in must be seen to come out, or it is said why not."""

from __future__ import annotations

import html
import inspect
import json
import traceback
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, meta, nodes
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import _compile_jinja_template as compile_template

from rlhf_pg.data.conversation import SYSTEM, Turn
from rlhf_pg.names import nearest

DATE = datetime(2024, 7, 26)  # "today" of every template, or the prompts of a run would change overnight
IN_USER_TURN = "instruction in the user's turn"
SYSTEM_IN_USER_TURN = "system turns in the user's"
QUESTION = "What is 271828 + 314159?"
PART_AS_DATA = ("'type': 'text'", '"type": "text"', '"type":"text"')
REMEDY = "mend it, or set template to r1, plain or text with {prompt}"


class ChatTemplate:
    """Renders questions and conversations. `instruction` ("" for none) is the system turn of those without one.

    Some templates leave a turn out, refuse a system turn, or take a turn's content only as a list of parts. So what was
    rendered is searched for every turn: if one is missing, content is given as parts, and then what a system turn says
    in the user's turn. Raises ValueError, naming the template's line, when it is broken or no way prints everything;
    and for `options` that the template does not mention.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, instruction: str, options: Mapping[str, Any]):
        self._tokenizer, self._instruction, self._options = tokenizer, instruction, dict(options)
        self._placements: dict[str, None] = {}  # where instructions went: "" is a system turn, or there was none
        self.prints_date = False
        self._source = _source(tokenizer, options)
        _refuse_unknown(options, self._variables(), self._name())
        self.render(QUESTION)  # too long to be in a text by chance
        self._expected, self._placements = self._placements, {}

    @property
    def name(self) -> str:
        """Return "chat", and where the instructions of what was rendered went if not into a system turn."""
        elsewhere = ", ".join(filter(None, self._placements or self._expected))
        return f"chat ({elsewhere})" if elsewhere else "chat"

    def render(self, question: str | Sequence[Turn]) -> str:
        """Return the text of a prompt, which ends where the assistant's turn begins."""
        turns = [{"role": "user", "content": question}] if isinstance(question, str) else list(question)
        faults = []
        for conversation, placement in _arrangements(turns, self._instruction):
            for attempt in (self._with_text, self._with_parts):
                try:
                    text = attempt(conversation)
                except ValueError as error:
                    faults.append(error)
                    continue
                self._placements[placement] = None
                return text
        raise faults[-2]  # of the last attempt with plain text, which is what nearly all templates take

    def _with_text(self, turns: Sequence[Turn]) -> str:
        text = self._rendered(turns)
        self._refuse_loss(text, turns)
        return text

    def _with_parts(self, turns: Sequence[Turn]) -> str:
        text = self._rendered([{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in turns])
        self._refuse_loss(text, turns)
        if any(key in text for key in PART_AS_DATA):
            raise ValueError(f"{self._name()}: it prints a list of parts as Python does")
        return text

    def _rendered(self, turns: Sequence[Turn]) -> str:
        def today(format: str) -> str:
            self.prints_date = True
            return DATE.strftime(format)

        try:
            text = self._tokenizer.apply_chat_template(
                list(turns), add_generation_prompt=True, tokenize=False, **{"strftime_now": today, **self._options}
            )
        except Exception as error:  # a template is a program of somebody else's
            raise ValueError(f"{self._name(error)}: {_said(error)}; {REMEDY}") from error
        assert isinstance(text, str)
        return text

    def _refuse_loss(self, text: str, turns: Sequence[Turn]) -> None:
        """Raise ValueError if the words of a turn are not in a text; white space and escapes may differ."""
        printed = [" ".join(variant.split()) for variant in (text, html.unescape(text))]
        for turn in turns:
            content = turn["content"]
            if turn["role"] == "assistant":  # templates of thinking models leave earlier thoughts out
                content = content.rpartition("</think>")[2]
            spellings = [content, *(json.dumps(content, ensure_ascii=ascii)[1:-1] for ascii in (True, False))]
            if not any(" ".join(spelling.split()) in variant for spelling in spellings for variant in printed):
                raise ValueError(
                    f"{self._name()}: what it renders lacks the {turn['role']} turn {_cut(content)!r}; {REMEDY}"
                )

    def _variables(self) -> set[str]:
        """Return what the template reads from outside: not what it sets itself without looking if that is there."""
        try:
            template = compile_template(self._source)
            tree = template.environment.parse(self._source)
        except Exception as error:
            raise ValueError(f"{self._name(error)}: {_said(error)}; {REMEDY}") from error
        own = {name.name for name in tree.find_all(nodes.Name) if name.ctx == "store"}
        looks = [
            use for use in tree.find_all((nodes.Test, nodes.Filter)) if use.name in ("defined", "undefined", "default")
        ]
        return meta.find_undeclared_variables(tree) - (own - {getattr(use.node, "name", None) for use in looks})

    def _name(self, error: Exception | None = None) -> str:
        """Return "chat template of gemma (chat_template.jinja), line 3, `{{ x.y }}`", the line of an error if any."""
        place = _file(self._tokenizer, self._source)
        name = f"chat template of {self._tokenizer.name_or_path or 'this tokenizer'}{f' ({place})' if place else ''}"
        frames = traceback.extract_tb(error.__traceback__) if error else []
        number = getattr(error, "lineno", None) or next(
            (frame.lineno for frame in reversed(frames) if frame.filename == "<template>"), None
        )
        if number is None:
            return name
        lines = self._source.split("\n")
        shown = _cut(lines[number - 1].strip()) if number <= len(lines) else ""
        return f"{name}, line {number}{f', `{shown}`' if shown else ''}"


def _arrangements(turns: list[Turn], instruction: str) -> Iterator[tuple[list[Turn], str]]:
    """Yield what to try in turn: (conversation, where else than in a system turn something was put)."""
    system = [turn for turn in turns if turn["role"] in SYSTEM]
    last = turns[-1]
    if system:
        yield turns, ""
        others = [turn for turn in turns if turn["role"] not in SYSTEM]
        first = next(turn for turn in others if turn["role"] == "user")
        said = "\n\n".join(turn["content"] for turn in (*system, first))
        yield [{**turn, "content": said} if turn is first else turn for turn in others], SYSTEM_IN_USER_TURN
    elif instruction and not any(instruction in turn["content"] for turn in turns):
        yield [{"role": "system", "content": instruction}, *turns], ""
        yield [*turns[:-1], {**last, "content": f"{last['content']}\n{instruction}"}], IN_USER_TURN
    else:
        yield turns, ""


def _source(tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any]) -> str:
    """Return the template's text: the one for tools if there are tools and such a one, else the default."""
    templates = tokenizer.chat_template
    if (
        isinstance(templates, dict)
        and "default" not in templates
        and not ("tools" in options and "tool_use" in templates)
    ):
        raise ValueError(
            f"{tokenizer.name_or_path or 'this tokenizer'} has chat templates {', '.join(sorted(templates))}, but none "
            "named default, which is the one used: rename one, or set template to r1, plain or text with {prompt}"
        )
    return tokenizer.get_chat_template(tools=options.get("tools"))


def _refuse_unknown(options: Mapping[str, Any], variables: set[str], name: str) -> None:
    """Raise ValueError for an option that the template never mentions, or that is not a person's to set."""
    set_here = {"messages", *inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters}
    free = sorted(variables - (set_here - {"tools", "documents"}))
    for option in options:
        if option not in free:
            listed = f"it has {', '.join(free)}{nearest(option, free)}" if free else "it has none to set"
            raise ValueError(f"template_options.{option}: the {name} never mentions it; {listed}")


def _file(tokenizer: PreTrainedTokenizerBase, source: str) -> str:
    """Return the file of a tokenizer's folder that a template came from; "" where there is no folder."""
    folder, templates = Path(str(tokenizer.name_or_path)), tokenizer.chat_template
    name = (
        next((n for n, text in templates.items() if text == source), "") if isinstance(templates, dict) else "default"
    )
    jinja = "chat_template.jinja" if name == "default" else f"additional_chat_templates/{name}.jinja"
    return next((file for file in (jinja, "tokenizer_config.json") if (folder / file).is_file()), "")


def _said(error: Exception) -> str:
    """Return what an error of a template says, with its class where that is Python's and not jinja's."""
    text = " ".join(str(error).split())
    return text if isinstance(error, TemplateError) else f"{type(error).__name__}: {text}"


def _cut(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
