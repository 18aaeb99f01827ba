"""transformers' `model.generate` as a contender: each prompt as often as it is sampled, in one padded batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.port import Answer, Port
from benchmarks.shapes import Shape, shape_of


def prompt_tokens(shape: Shape, folder: Path) -> list[list[int]]:
    """Return the tokens of the first N prompts."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    rows = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
    return [tokenizer.encode(row["prompt"]) for row in rows[: shape.prompts]]


def rollout(specification: dict[str, Any], port: Port) -> None:
    """Serve samples at temperature 1 from the whole distribution, as a rollout does."""
    shape, folder = shape_of(specification["shape"]), Path(specification["folder"])
    model: Any = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
    tokens = torch.tensor(prompt_tokens(shape, folder)).repeat_interleave(shape.samples, dim=0)  # [B, P]
    eos = model.generation_config.eos_token_id

    @torch.no_grad()
    def take(command: Answer) -> Answer:
        torch.manual_seed(command["round"])
        settings = dict(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=shape.completion)
        sequences = model.generate(input_ids=tokens, attention_mask=torch.ones_like(tokens), **settings)
        written = sequences[:, shape.prompt :]
        ended_before = (written == eos).cumsum(dim=1) - (written == eos).int()
        return {"tokens": int((ended_before == 0).sum())}

    port.serve(take)
