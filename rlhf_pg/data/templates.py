"""From a question to the tokens of a prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

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

    name: str  # of the one in use: never "auto"
    render: Callable[[str], str]
    prefix: tuple[int, ...]  # the BOS of tokenizers that add one by themselves; a chat template writes its own

    def encode(self, question: str, tokenizer: PreTrainedTokenizerBase) -> tuple[str, tuple[int, ...]]:
        """Return text and token ids. The text does not show the prefix."""
        text = self.render(question)
        return text, (*self.prefix, *tokenizer.encode(text, add_special_tokens=False))


def choose(template: str, tokenizer: PreTrainedTokenizerBase, instruction: str) -> Template:
    """Return the template to use: "auto" is the chat template where the tokenizer has one, R1 otherwise.

    Anything that is not a name must be text holding {prompt}. `instruction` is the system prompt of a chat.
    Raises ValueError for an unknown name, text without {prompt}, or "chat" without a chat template.
    """
    if template == "auto":
        template = "chat" if tokenizer.chat_template else "r1"
    if template == "chat":
        if not tokenizer.chat_template:
            raise ValueError(
                'template "chat": this tokenizer has no chat template; use "r1", "plain" or text with {prompt}'
            )
        return _chat(tokenizer, instruction)
    if template not in NAMES and "{prompt}" not in template:
        raise ValueError(f"template {template!r} is none of {', '.join(NAMES)} and has no {{prompt}} in it")
    text = {"r1": R1, "plain": "{prompt}"}.get(template, template)
    name = template if template in NAMES else "custom"
    return Template(name, lambda question: text.replace("{prompt}", question), _automatic_bos(tokenizer))


def _chat(tokenizer: PreTrainedTokenizerBase, instruction: str) -> Template:
    """Return the tokenizer's chat template. Where it refuses a system turn (Gemma's does), the instruction ends the
    user's turn."""

    def with_system(question: str) -> str:
        turns = [{"role": "system", "content": instruction}, {"role": "user", "content": question}]
        return _apply(tokenizer, turns)

    def without_system(question: str) -> str:
        return _apply(tokenizer, [{"role": "user", "content": f"{question}\n{instruction}"}])

    try:
        with_system("1+1?")
        return Template("chat", with_system, ())
    except TemplateError:
        return Template("chat (instruction in the user's turn)", without_system, ())


def _apply(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]]) -> str:
    text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    assert isinstance(text, str)
    return text


def _automatic_bos(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the BOS that the tokenizer adds by itself, if it does."""
    bos: Any = tokenizer.bos_token_id
    plain, special = (tokenizer.encode("1", add_special_tokens=added) for added in (False, True))
    return (bos,) if bos is not None and special[:1] == [bos] and plain[:1] != [bos] else ()
