"""From a question, or a conversation, to the tokens of a prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf_pg.data.chat import DATE, QUESTION, ChatTemplate
from rlhf_pg.data.conversation import Turn

# DeepSeek-R1-Zero (arXiv:2501.12948, table 1), for models without a chat template
R1 = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. "
    "The assistant first thinks about the reasoning process in the mind and then provides the user with the answer. "
    "The reasoning process and answer are enclosed within <think> </think> and <answer> </answer> tags, respectively, "
    "i.e., <think> reasoning process here </think> <answer> answer here </answer>. User: {prompt} Assistant:"
)
NAMES = ("auto", "chat", "r1", "plain")


@dataclass(frozen=True)
class Template:
    """How a question becomes text, `render(question)`, and tokens: the tokenizer's of that text, after `prefix`."""

    label: str
    render: Callable[[str | Sequence[Turn]], str]
    prefix: tuple[int, ...]  # what the tokenizer puts in front by itself, a BOS; () for a chat, which writes its own
    chat: ChatTemplate | None = None

    @property
    def name(self) -> str:
        """Return the name of the one in use, never "auto"; of a chat, with what went elsewhere than one expects."""
        return self.chat.name if self.chat else self.label

    def encode(self, question: str | Sequence[Turn], tokenizer: PreTrainedTokenizerBase) -> tuple[str, tuple[int, ...]]:
        """Return text and token ids. The text does not show the prefix; text that begins with one gets no second."""
        text = self.render(question)
        tokens = tuple(tokenizer.encode(text, add_special_tokens=False))
        return text, tokens if _begins_with(self.prefix, text, tokens, tokenizer) else (*self.prefix, *tokens)

    def remarks(self, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """Return what a person should know about the prompts of a chat template."""
        if self.chat is None:
            return []
        remarks = []
        if self.chat.prints_date:
            remarks.append(
                f"dated {DATE:%d %b %Y} always, as its template asks for the day and prompts must not change"
            )
        prefix, (text, tokens) = _automatic_prefix(tokenizer), self.encode(QUESTION, tokenizer)
        if not _begins_with(prefix, text, tokens, tokenizer):
            remarks.append(
                f"no {_written(prefix, tokenizer)} in front, which the tokenizer adds but its chat template omits"
            )
        return remarks


def choose(
    template: str, tokenizer: PreTrainedTokenizerBase, instruction: str, options: Mapping[str, Any] | None = None
) -> Template:
    """Return the template to use: "auto" is the chat template where the tokenizer has one, R1 otherwise.

    Anything that is not a name must be text holding {prompt}. `instruction` ("" for none) is the system turn of a chat,
    `options` are variables of a chat template. Raises ValueError for an unknown name, text without {prompt}, "chat"
    without a chat template, options without one, or a chat template that is broken.
    """
    automatic = template == "auto"
    if automatic:
        template = "chat" if tokenizer.chat_template else "r1"
    if template == "chat":
        if not tokenizer.chat_template:
            raise ValueError(
                'template "chat": this tokenizer has no chat template; use "r1", "plain" or text with {prompt}'
            )
        chat = ChatTemplate(tokenizer, instruction, options or {})
        return Template("chat", chat.render, (), chat)
    if template not in NAMES and "{prompt}" not in template:
        raise ValueError(f"template {template!r} is none of {', '.join(NAMES)} and has no {{prompt}} in it")
    name = template if template in NAMES else "custom"
    reason = "this tokenizer has none, so the template is" if automatic else "the template is"
    if options:
        raise ValueError(f"template_options: variables of a chat template, and {reason} {name}")
    text = {"r1": R1, "plain": "{prompt}"}.get(template, template)

    def render(question: str | Sequence[Turn]) -> str:
        if not isinstance(question, str):
            raise ValueError(
                f"a list of messages takes a chat template, and {reason} {name}; use a tokenizer that has one "
                "(model.tokenizer) with template chat, or a column of text"
            )
        return text.replace("{prompt}", question)

    return Template(name, render, _automatic_prefix(tokenizer))


def continuation(prompt: str, text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens of a text that follows a prompt's.

    They are those of the whole, where that begins with the prompt's: by itself, a text begins in some tokenizers with a
    space that is not there.
    """
    before, whole = (tokenizer.encode(t, add_special_tokens=False) for t in (prompt, prompt + text))
    follows = whole[: len(before)] == before
    return whole[len(before) :] if follows else tokenizer.encode(text, add_special_tokens=False)


def _automatic_prefix(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the special tokens that the tokenizer puts in front by itself, if any: a BOS mostly."""
    plain, special = (tokenizer.encode("1", add_special_tokens=added) for added in (False, True))
    if not plain:  # a tokenizer that does not know the digit
        return tuple(special[:1]) if special[:1] == [tokenizer.bos_token_id] else ()
    starts = range(len(special) - len(plain) + 1)
    return tuple(special[: next((i for i in starts if special[i : i + len(plain)] == plain), 0)])


def _begins_with(
    prefix: tuple[int, ...], text: str, tokens: tuple[int, ...], tokenizer: PreTrainedTokenizerBase
) -> bool:
    """Return whether tokens begin with a prefix, or text does but for white space in front of it."""
    written = _written(prefix, tokenizer)
    return tokens[: len(prefix)] == prefix or (written != "" and text.lstrip().startswith(written))


def _written(prefix: tuple[int, ...], tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.decode(list(prefix))).strip()
