"""vLLM as a rollout engine, in this process: a copy of the policy that every `load_weights` makes new.

Token ids go in and come out; one request a prompt, with all its samples. Each sample draws from a stream of its own,
keyed by (seed, step, prompt id, sample), so that a sample depends on nothing beside it, up to float rounding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_pg.models import named_weights
from rlhf_pg.models.context import context_length
from rlhf_pg.rollout import weight_check
from rlhf_pg.rollout.engine import Engine, Finished, Progress, VllmOptions, check_request, check_settings
from rlhf_pg.rollout.vllm_core import Core, seeded_random
from rlhf_pg.rollout.weights import overwrite
from rlhf_pg.types import Completion, Prompt, Sampling

CACHE_LIMIT = 4 * 2**30  # bytes of keys and values, unless `cache_gb` says otherwise
BLOCK = 128  # positions that vLLM allots at once on a CPU; fewer elsewhere


class VllmEngine(Engine):
    """See `Engine`; samples from a copy of `model` that `load_weights` renews, adapters merged in.

    slots: rows sampled at once; dtype: of vLLM's arithmetic; context: of its longest request, by default the model's.
    options: see `VllmOptions`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        eos_ids: Sequence[int],
        slots: int = 256,
        version: int = 0,
        *,
        dtype: str = "float32",
        context: int | None = None,
        trust_remote_code: bool = False,
        **options: Any,
    ) -> None:
        check_settings(slots, eos_ids)
        self.options = VllmOptions(**options)
        if self.options.sleep and not torch.cuda.is_available():
            raise ValueError("rollout.options.sleep: vLLM can only give back the memory of a GPU; leave it out")
        self.model, self.eos_ids, self.version = model, tuple(eos_ids), version
        self.dtype = dtype
        self.context = min(context_length(model.config), context or 2**31)
        self.vocabulary = model.config.get_text_config().vocab_size
        base = named_weights.without_adapter(model)
        self.core: Core | None = Core(
            base.config,
            dtype,
            rows=slots,
            context=self.context,
            cache_bytes=cache_bytes(
                _token_bytes(base.config.get_text_config(), dtype), slots, self.context, self.options.cache_gb
            ),
            sleep=self.options.sleep,
            trust_remote_code=trust_remote_code,
        )
        self._asleep, self._calls = False, 0
        self._fault: str | None = "its weights were never written"
        self._packed = self.core.packed
        self._push(None, version)

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        progress: Progress | None = None,
        finished: Finished | None = None,
    ) -> list[list[Completion]]:
        """See `Engine.generate`. Also raises FloatingPointError when the model's logits are not finite, and ValueError
        for truncated sampling: vLLM's log-probs would be those of the truncated distribution."""
        check_request(prompts, sampling, self.context, self.vocabulary)
        if sampling.top_p < 1 or sampling.top_k:
            raise ValueError("vLLM reports log-probs after top_p and top_k: sample from the whole distribution")
        if self._fault is not None:
            raise RuntimeError(f"the vLLM engine cannot be sampled from: {self._fault}")
        with self._awake() as core:
            self._calls += 1
            return _Request(core, self, prompts, sampling, progress, finished).completions()

    def load_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Copy tensors over the live weights, then give vLLM what training changes, and check that it arrived.

        Raises ValueError, before anything is changed, for an unknown name or a wrong shape; RuntimeError when vLLM
        then samples by other weights: the engine refuses to sample until a push succeeds.
        """
        names = overwrite(self.model, tensors)
        names += [name for name, parameter in self.model.named_parameters() if parameter.requires_grad]
        self._push({named_weights.module_of(name) for name in names}, version)

    def close(self) -> None:
        """Give the memory back."""
        if self.core is not None:
            self.core.close()
            self.core, self._fault = None, "it was closed"

    def _push(self, modules: set[str] | None, version: int) -> None:
        """Write these modules' weights, all if None, as `version`, and check that vLLM samples by them."""
        with self._awake() as core:
            written = None if modules is None else named_weights.with_packed(modules, self._packed)
            self._fault = f"the push of version {version} did not end"
            core.write(named_weights.weights(self.model, written))
            self._fault = None
            self.version = version
            try:
                prompts = weight_check.prompts(self.vocabulary, self.context)
                groups = _Request(core, self, prompts, weight_check.sampling(self.context)).completions()
                weight_check.check(self.model, prompts, groups, self.dtype, version)
            except BaseException as error:
                self._fault = str(error) or type(error).__name__
                raise

    @contextmanager
    def _awake(self) -> Iterator[Core]:
        """Give vLLM with its memory, which it gives back afterwards if it is to sleep."""
        if self.core is None:
            raise RuntimeError("the vLLM engine was closed: build another")
        if self._asleep:
            self.core.wake()
            self._asleep = False
        with seeded_random(0):
            yield self.core
        if self.options.sleep:
            self.core.sleep()
            self._asleep = True


class _Request:
    """The state of one `generate`."""

    def __init__(
        self,
        core: Core,
        engine: VllmEngine,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        progress: Progress | None = None,
        finished: Finished | None = None,
    ) -> None:
        self.core, self.engine, self.prompts, self.sampling = core, engine, prompts, sampling
        self.progress, self.finished = progress, finished
        self.copies = sampling.samples if sampling.temperature == 0 else 1  # of one sample, where all are the same
        self.total, self.sampled = len(prompts) * sampling.samples, 0
        self.names = {f"{engine._calls}/{place}": place for place in range(len(prompts))}
        self.tokens: dict[tuple[int, int], list[int]] = {}
        self.logp: dict[tuple[int, int], list[float]] = {}
        self.completed: dict[tuple[int, int], Completion] = {}

    def completions(self) -> list[list[Completion]]:
        try:
            torch.manual_seed(_seed(self.sampling, "") if not self.engine.options.seeded else 0)
            for name, place in self.names.items():
                prompt = self.prompts[place]
                seed = _seed(self.sampling, prompt.id) if self.engine.options.seeded else None
                distinct = replace(self.sampling, samples=self.sampling.samples // self.copies)
                self.core.add(name, prompt.tokens, distinct, self.engine.eos_ids, seed)
            while self.core.busy:
                for piece in self.core.step():
                    for copy in range(self.copies):
                        row = self.names[piece.request], piece.sample + copy
                        self._take(row, piece.tokens, piece.logp, piece.finish)
                if self.progress is not None:
                    self.progress(len(self.completed), self.total, self.sampled)
        except BaseException:
            self.core.drop([*self.names])
            raise
        if len(self.completed) != self.total:
            raise RuntimeError(f"vLLM ended with {len(self.completed)} of {self.total} samples")
        samples = range(self.sampling.samples)
        return [[self.completed[place, j] for j in samples] for place in range(len(self.prompts))]

    def _take(self, row: tuple[int, int], tokens: list[int], logp: list[float], finish: str | None) -> None:
        """Add to a row what was sampled, and hand it out if that was the end of it."""
        self.tokens.setdefault(row, []).extend(tokens)
        self.logp.setdefault(row, []).extend(logp)
        self.sampled += len(tokens)
        if finish is None:
            return
        ids, values = torch.tensor(self.tokens.pop(row)), torch.tensor(self.logp.pop(row), dtype=torch.float32)
        if not bool(values.isfinite().all()):
            raise FloatingPointError("the model's logits are not finite: its weights diverged or overflow their dtype")
        stopped = len(ids) > 0 and int(ids[-1]) in self.engine.eos_ids
        if len(ids) != len(values) or finish != ("stop" if stopped else "length"):
            raise RuntimeError(f"vLLM ended a sample with {finish!r} after {len(ids)} tokens, {len(values)} log-probs")
        self.completed[row] = Completion(ids, values, "stop" if stopped else "length", self.engine.version)
        if self.finished is not None:
            self.finished(*row, self.completed[row])


def _seed(sampling: Sampling, prompt_id: str) -> int:
    """Return the seed of a prompt's first sample, from which the others count up: 62 bits."""
    name = f"{sampling.seed}/{sampling.step}/{prompt_id}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little") >> 2


def cache_bytes(token: int, slots: int, context: int, limit_gb: float | None) -> int:
    """Return the bytes of keys and values: the limit if there is one, else what all rows need, at most CACHE_LIMIT, but
    never less than one row's. `token`: bytes of one token's; `context`: tokens of the longest row."""
    if limit_gb is not None:
        return int(limit_gb * 2**30)
    row = token * BLOCK * (-(-context // BLOCK) + 1)
    return max(row, min(slots * row, CACHE_LIMIT))


def _token_bytes(shape, dtype: str) -> int:
    head = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    return 2 * shape.num_hidden_layers * shape.num_key_value_heads * head * (2 if dtype == "bfloat16" else 4)
