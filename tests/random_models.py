"""Small random models and batches for tests: real architectures, random weights."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from rlhf_pg.types import Batch

SHAPE: dict[str, Any] = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
)


def random_model(kind: str = "qwen2", vocabulary: int = 23, seed: int = 0, **changes) -> PreTrainedModel:
    """A Qwen2 (tied head, biases) or Llama (untied head) with random weights."""
    shape: dict[str, Any] = SHAPE | dict(vocab_size=vocabulary, max_position_embeddings=128) | changes
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind == "qwen2":
            model = Qwen2ForCausalLM(Qwen2Config(**shape, tie_word_embeddings=True))
        else:
            model = LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=False))
        for parameter in model.parameters():  # the initial weights are so small that every distribution is flat
            parameter.data.add_(0.15 * torch.randn_like(parameter))
    return model


def random_batch(prompts: int = 3, samples: int = 4, vocabulary: int = 23, seed: int = 0, holes: bool = False) -> Batch:
    """Ragged prompts (2..7 tokens) and completions (1..6 tokens), as the collator lays them out."""
    g = torch.Generator().manual_seed(seed)
    rows = prompts * samples
    prompt_lengths = torch.randint(2, 8, (prompts,), generator=g)
    lengths = torch.randint(1, 7, (rows,), generator=g)
    width, prompt_width = int(lengths.max()), int(prompt_lengths.max())
    mask = torch.arange(width) < lengths[:, None]
    padded_prompt = torch.arange(prompt_width) >= prompt_lengths[:, None]
    if holes:
        mask = mask & ~((torch.arange(width) == 1) & (lengths[:, None] > 2))
    return Batch(
        prompt_tokens=torch.randint(1, vocabulary, (prompts, prompt_width), generator=g).masked_fill(padded_prompt, 0),
        prompt_lengths=prompt_lengths,
        group=torch.arange(prompts).repeat_interleave(samples),
        tokens=torch.randint(1, vocabulary, (rows, width), generator=g),
        mask=mask,
        reward=torch.randn(rows, generator=g),
        logp_rollout=torch.randn(rows, width, generator=g) - 3,
    )
