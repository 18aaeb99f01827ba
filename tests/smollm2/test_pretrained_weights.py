"""What is loaded is SmolLM2: transformers' own reading of the file, and a model that knows what it was taught."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_pg.models import gguf
from rlhf_pg.rollout.native import NativeEngine
from rlhf_pg.types import Sampling


def test_weights_and_tokens_are_transformers_own_reading(model, tokenizer):
    file = gguf._smollm2()
    direct = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32)
    weights = dict(model.named_parameters())
    assert weights.keys() == dict(direct.named_parameters()).keys()
    assert all(torch.equal(weights[name], p) for name, p in direct.named_parameters())
    assert sum(p.numel() for p in weights.values()) == 134_515_008
    assert model.lm_head.weight is model.model.embed_tokens.weight
    plain = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    assert tokenizer.get_vocab() == plain.get_vocab() and len(tokenizer) == model.config.vocab_size == 49_152
    text = "<|im_start|>user\nNatalia sold 1,048 clips (\\frac{1}{2})…\n\n 7 é 数<|im_end|>\n"
    assert tokenizer.encode(text) == plain.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_name_and_licence_are_known():
    said = gguf.description("smollm2")
    assert "Smollm2 135M" in said and "licence apache-2.0" in said and "SmolLM2-135M-Instruct.Q4_1.gguf" in said


def test_it_knows_the_capital_of_france_and_stops(model, tokenizer, prompts):
    ((answer,),) = NativeEngine(model, [2]).generate(
        prompts[1:2], Sampling(samples=1, max_new_tokens=16, temperature=0)
    )
    assert tokenizer.decode(answer.tokens.tolist()) == "The capital of France is Paris.<|im_end|>"
    assert answer.finish == "stop"
