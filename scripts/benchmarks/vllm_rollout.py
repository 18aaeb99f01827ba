"""vLLM's CPU build as a contender in generation, in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams, TokensPrompt  # pyright: ignore[reportMissingImports]

from benchmarks.generate import prompt_tokens
from benchmarks.port import Answer, Port
from benchmarks.shapes import shape_of


def rollout(specification: dict[str, Any], port: Port) -> None:
    """Serve samples at temperature 1 from the whole distribution, n = G of each prompt."""
    shape, folder = shape_of(specification["shape"]), Path(specification["folder"])
    engine = LLM(
        str(folder / "model"),
        dtype="float32",
        enforce_eager=True,
        max_model_len=shape.prompt + shape.completion,
        max_num_seqs=shape.rows,
        enable_prefix_caching=False,  # a later round must not find the prompts of an earlier one
    )
    prompts = [TokensPrompt(prompt_token_ids=tokens) for tokens in prompt_tokens(shape, folder)]

    def take(_: Answer) -> Answer:
        # A seed would give every request a generator of its own, several times slower; text is not asked for.
        sampling = SamplingParams(n=shape.samples, temperature=1.0, max_tokens=shape.completion, detokenize=False)
        requests = engine.generate(prompts, sampling, use_tqdm=False)
        return {"tokens": sum(len(out.token_ids) for request in requests for out in request.outputs)}

    port.serve(take)
