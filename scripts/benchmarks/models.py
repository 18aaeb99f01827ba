"""Build the models, tokenizers and prompts of the benchmark: random weights from a seed, nothing to download.

Where a completion ends is built into the weights, so that every contender samples the same lengths without an option
of its own. Coordinate 0 of the hidden state is made constant: every embedding has the same number there, and no layer
writes to it. The head's row of <eos> reads that coordinate alone, so its number there is a bias on the logit of <eos>.
Either that is so low that no completion ends before its limit, or (`stops`) it is solved for such that completions of
random tokens end after 0.45 C tokens in the mean, at nearly the same chance at every token.
"""

from __future__ import annotations

import json
import random
import shutil
import string
from pathlib import Path
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from benchmarks.port import Port
from benchmarks.shapes import Model, Shape, shape_of

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
NEVER = -1000.0
MEAN_SHARE = 0.45  # of the longest completion, where completions end by themselves
PROMPTS = 64


def build(specification: dict[str, Any], port: Port) -> None:
    """Serve as a contender that writes a folder for the shape of each command; the answer counts parameters."""

    def take(command: dict[str, Any]) -> dict[str, Any]:
        shape, folder = shape_of(command["shape"]), Path(command["folder"])
        model = make(shape)
        save(model, shape, folder)
        counted = sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())
        return {"parameters": counted, "eos_bias": float(model.lm_head.weight[1, 0])}

    port.serve(take)


def random_model(model: Model, seed: int = 0) -> Qwen2ForCausalLM:
    """Return the architecture with random weights; <pad> is token 0, <eos> token 1."""
    config = Qwen2Config(
        vocab_size=model.vocabulary,
        hidden_size=model.hidden,
        intermediate_size=model.intermediate,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        num_key_value_heads=model.kv_heads,
        max_position_embeddings=1024,
        tie_word_embeddings=model.tied,
        initializer_range=0.6 / model.hidden**0.5,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    torch.manual_seed(seed)
    built = Qwen2ForCausalLM(config).float().eval()
    built.generation_config = GenerationConfig(eos_token_id=1, pad_token_id=0)
    return built


@torch.no_grad()
def make(shape: Shape) -> Qwen2ForCausalLM:
    """Return the model of a shape, which writes completions of its lengths."""
    model = random_model(shape.model)
    embedding: Any = model.get_input_embeddings().weight
    head = model.lm_head.weight
    embedding[:, 0] = 0.6  # as large as all other coordinates of an embedding together
    if not shape.model.tied:
        head[:, 0] = 0.0
    for layer in model.model.layers:
        for writer in (layer.self_attn.o_proj, layer.mlp.down_proj):  # pyright: ignore[reportAttributeAccessIssue]
            writer.weight[0] = 0.0  # pyright: ignore
    head[1] = 0.0
    head[1, 0] = _bias(model, shape) if shape.stops else NEVER
    return model


@torch.no_grad()
def _bias(model: Qwen2ForCausalLM, shape: Shape, rows: int = 16) -> float:
    """Return the bias at which completions of random tokens have the mean length of the shape, by bisection."""
    size = (rows, shape.prompt + shape.completion)
    tokens = torch.randint(2, shape.model.vocabulary, size, generator=torch.Generator().manual_seed(0))
    hidden = model.model(tokens).last_hidden_state[:, shape.prompt - 1 : -1]  # [rows, C, H]
    others = (hidden @ model.lm_head.weight.T)[..., 2:].logsumexp(-1)  # [rows, C]
    low, high = -200.0, 200.0
    for _ in range(60):
        middle = (low + high) / 2
        longer = mean_length(torch.sigmoid(middle * hidden[..., 0] - others)) > MEAN_SHARE * shape.completion
        low, high = (middle, high) if longer else (low, middle)
    return low


def mean_length(stop: Tensor) -> float:
    """Return the mean tokens of completions that end at token t, of those that got so far, with chance stop[row, t]."""
    got_there = (1 - stop).cumprod(dim=1).roll(1, dims=1)
    got_there[:, 0] = 1
    return float(got_there.sum(dim=1).mean())


def tokenizer(vocabulary: int) -> Qwen2Tokenizer:
    """Return a tokenizer with a token per character; the rest of the vocabulary are words that only a model writes."""
    characters = "\n" + "".join(map(chr, range(32, 127)))
    spelled = [ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(c)[0][0] for c in characters]
    names = [PAD, EOS, UNKNOWN, *spelled]
    names += [f"w{number:06d}" for number in range(vocabulary - len(names))]
    return Qwen2Tokenizer(
        vocab={token: number for number, token in enumerate(names)},
        merges=[],
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    )


def prompts(length: int) -> list[str]:
    """Return random letters and digits, the same for the same length."""
    draw = random.Random(length)
    return ["".join(draw.choices(string.ascii_letters + string.digits, k=length)) for _ in range(PROMPTS)]


def save(model: Qwen2ForCausalLM, shape: Shape, folder: Path) -> None:
    """Write folder/model and folder/prompts.jsonl. Raises ValueError if a prompt has not P tokens."""
    if folder.exists():
        shutil.rmtree(folder)
    characters, texts = tokenizer(shape.model.vocabulary), prompts(shape.prompt)
    if {len(characters.encode(text)) for text in texts} != {shape.prompt}:
        raise ValueError(f"the prompts for {folder} have not {shape.prompt} tokens each")
    model.save_pretrained(folder / "model")
    characters.save_pretrained(folder / "model")
    rows = [json.dumps({"prompt": text, "answer": "none"}) for text in texts]
    (folder / "prompts.jsonl").write_text("\n".join(rows) + "\n")
