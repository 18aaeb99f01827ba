"""Chat templates in the ways of well-known models, cut to what matters, and tokenizers of several conventions."""

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from rlhf_pg.models.tokenizer import character_tokenizer

CHATML = (
    "{% for m in messages %}<im>{{ m.role }}\n{{ m.content }}</im>\n{% endfor %}"
    "{% if add_generation_prompt %}<im>assistant\n{% endif %}"
)
DEFAULT_SYSTEM = (  # Qwen2.5, SmolLM2
    "{% if messages[0].role != 'system' %}<im>system\nYou are helpful.</im>\n{% endif %}" + CHATML
)
OVERRIDES_SYSTEM = (
    "<im>system\nYou are helpful.</im>\n{% for m in messages if m.role != 'system' %}<im>{{ m.role }}\n"
    "{{ m.content }}</im>\n{% endfor %}{{ '<im>assistant\n' }}"
)
ONLY_USER = "{% for m in messages %}{% if m.role == 'user' %}[USER]{{ m.content }}\n{% endif %}{% endfor %}[BOT]"
ONLY_LAST = "[USER]{{ messages[-1].content }}[BOT]"
IGNORES_CONTENT = "{% for m in messages %}[{{ m.role }}]{% endfor %}[assistant]"
CUTS_CONTENT = "{% for m in messages %}[{{ m.role }}]{{ m.content[:10] }}{% endfor %}[assistant]"
GEMMA = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}"
    "{% else %}{% set rest = messages %}{% set system = false %}{% endif %}"
    "{% for m in rest %}{% if loop.first and system %}"
    "{% set content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + m.content %}"
    "{% else %}{% set content = m.content %}{% endif %}"
    "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
DATED = (  # Llama 3.1 and 3.2
    "{% if not date_string is defined %}{% if strftime_now is defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}{% endif %}{% endif %}Today Date: {{ date_string }}\n" + CHATML
)
THINKING = (  # Qwen3, DeepSeek-R1: earlier thoughts are left out, and thinking can be switched off
    "{% for m in messages %}{% set text = m.content %}"
    "{% if m.role == 'assistant' %}{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "<im>{{ m.role }}\n{{ text }}</im>\n{% endfor %}{% if add_generation_prompt %}<im>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
IN_PARTS = (  # of models that also take pictures
    "{% for m in messages %}<im>{{ m.role }}\n{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}"
    "{% endif %}{% endfor %}</im>\n{% endfor %}{{ '<im>assistant\n' }}"
)
GEMMA_IN_PARTS = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + IN_PARTS
)
ESCAPED = "{% for m in messages %}<{{ m.role }}>{{ m.content | e }}</{{ m.role }}>{% endfor %}<assistant>"
AS_JSON = '{% for m in messages %}{"{{ m.role }}": {{ m.content | tojson }}}{% endfor %}{"assistant": '


WORDS = ["What", "is", "1", "+", "2", "?", "[INST]", "[/INST]", "system", "user", "assistant"]


def characters(chat_template=None, name: str = ""):
    """The embedded tokenizer: one token a character, no BOS."""
    made = character_tokenizer()
    made.chat_template, made.name_or_path = chat_template, name
    return made


def words(*tokens: str, single: str = "$A", chat_template=None, **special: str) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are words; `single` is what it makes of a text, as "<s> $A </s>"."""
    vocabulary = ["<unk>", *tokens, *WORDS]
    ids = {word: i for i, word in enumerate(dict.fromkeys(vocabulary))}
    made = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore
    made.add_special_tokens([AddedToken(token, special=True) for token in tokens])
    made.post_processor = processors.TemplateProcessing(  # pyright: ignore
        single=single, special_tokens=[(token, ids[token]) for token in tokens]
    )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", **special)
    wrapped.chat_template = chat_template
    return wrapped


def sentencepiece_like(chat_template=None) -> PreTrainedTokenizerFast:
    """As Llama's first: a word begins with its space, the first word gets one, <s> is put in front."""
    pieces = ["<unk>", "<s>", "</s>", "▁", "▁What", "▁is", "▁1", "▁12", "▁User:", "▁A:", "1", "2", "+", "?", "\n"]
    made = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], 0, False))
    made.normalizer = normalizers.Sequence(  # pyright: ignore
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]  # pyright: ignore
    )
    made.decoder = decoders.Sequence(  # pyright: ignore
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]  # pyright: ignore
    )
    made.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ("<s>", "</s>")])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])  # pyright: ignore
    wrapped = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    wrapped.chat_template = chat_template
    return wrapped
