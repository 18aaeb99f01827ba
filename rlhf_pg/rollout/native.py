"""The in-process engine: samples from the live weights of the model being trained.

A queue of prompts feeds a fixed number of slots. A prompt is prefilled once and its keys and values are copied to the
rows of its group; all rows in use then decode one token at a time. A row that finishes is handed out and leaves at once
(the last row in use moves into its place), and when enough slots are free, or none is in use, they are refilled from
the queue.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from rlhf_pg.rollout.attention import Attention, context_of, embedding_weight
from rlhf_pg.rollout.cache import SlotCache, prefilled_states
from rlhf_pg.rollout.engine import Engine, Finished, Progress, check_request, check_settings
from rlhf_pg.rollout.llama_decode import LlamaDecode, can_decode
from rlhf_pg.rollout.sampling import choose, uniforms
from rlhf_pg.rollout.scheduler import Admission, Queue
from rlhf_pg.rollout.weights import overwrite
from rlhf_pg.types import Completion, Prompt, Sampling

CHOOSE_ELEMENTS = 2**24  # logits turned into tokens at once: bounds the fp32 and int64 copies


class NativeEngine(Engine):
    """Samples with `model` itself, in this process. See `Engine` for what `generate` promises.

    model: a transformers causal language model, or one wrapped by PEFT; eos_ids end a completion; slots: rows decoded
    at once, which bounds the memory of keys and values. Sampling happens in evaluation mode, so from the policy without
    dropout; every submodule's mode is put back afterwards. Dtype, requires_grad and random generators are not touched.
    Raises ValueError for a model whose attention this cache cannot serve.
    """

    def __init__(self, model: PreTrainedModel, eos_ids: Sequence[int], slots: int = 256, version: int = 0) -> None:
        check_settings(slots, eos_ids)
        self.model, self.eos_ids, self.slots, self.version = model, tuple(eos_ids), slots, version
        self.attention = Attention(model)
        self.llama_decode = can_decode(model)

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        progress: Progress | None = None,
        finished: Finished | None = None,
    ) -> list[list[Completion]]:
        """See `Engine.generate`. Also raises FloatingPointError when the model's logits are not finite."""
        check_request(prompts, sampling, context_of(self.model.config), self.model.config.get_text_config().vocab_size)
        with torch.no_grad(), evaluation_mode(self.model):
            return _Generation(self, prompts, sampling, progress, finished).completions()

    def load_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Copy tensors over the live weights by state-dict name; no tensors: the live weights already are `version`.

        Raises ValueError, before anything is changed, for an unknown name or a wrong shape.
        """
        overwrite(self.model, tensors)
        self.version = version

    def close(self) -> None:
        """Do nothing: keys and values have memory during a `generate` only."""


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Be in evaluation mode inside (no dropout; checkpointing would drop the cache); undo that for every submodule."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


class _Generation:
    """The state of one `generate`. Rows 0 .. n - 1 of every buffer are in use."""

    cache: SlotCache  # from the first prefill on, which shows the shape of keys and values

    def __init__(
        self,
        engine: NativeEngine,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        progress: Progress | None,
        finished: Finished | None,
    ):
        self.engine, self.prompts, self.sampling = engine, prompts, sampling
        self.progress, self.finished = progress, finished
        self.device = embedding_weight(engine.model).device
        self.total = len(prompts) * sampling.samples
        self.slots = min(engine.slots, self.total)
        self.queue = Queue(prompts, sampling.samples, self.slots)
        self.capacity = max(len(prompt.tokens) for prompt in prompts) + sampling.max_new_tokens  # columns
        self.state = torch.zeros(4, self.slots, dtype=torch.int64, device=self.device)
        # Each [slots]. token: sampled, not yet forwarded; length: of the cache row; owner: prompt * samples + sample
        self.token, self.length, self.count, self.owner = self.state
        shape = self.slots, sampling.max_new_tokens
        self.uniform = torch.zeros(shape, dtype=torch.float64, device=self.device)
        self.log_tokens = torch.zeros(shape, dtype=torch.int64, device=self.device)  # valid in columns < count
        self.log_logp = torch.zeros(shape, dtype=torch.float32, device=self.device)
        self.is_eos = self._eos_table()
        self.steps = LlamaDecode(engine.model, self.slots) if engine.llama_decode else None
        self.n = self.longest = self.done = self.sampled = 0
        self.completed: dict[int, Completion] = {}  # by owner

    def _eos_table(self) -> Tensor:
        """Return bool [V at least]: one lookup per step, however many EOS ids there are."""
        size = max(self.engine.model.config.get_text_config().vocab_size, *(i + 1 for i in self.engine.eos_ids))
        table = torch.zeros(size, dtype=torch.bool, device=self.device)
        table[list(self.engine.eos_ids)] = True
        return table

    def completions(self) -> list[list[Completion]]:
        while self.queue or self.n:
            for wave in self.queue.waves(self.n):
                self._admit(wave)
            if self.n:
                self._advance(0, self._decode())
        return self._assemble()

    def _admit(self, wave: list[Admission]) -> None:
        """Prefill each prompt of the wave once, copy it to its rows, and sample their first tokens."""
        lengths, logits, prefilled = self._prefill([self.prompts[admission.prompt].tokens for admission in wave])
        rows = [(place, a.prompt, a.first + j) for place, a in enumerate(wave) for j in range(a.rows)]
        source = torch.tensor([place for place, _, _ in rows], device=self.device)  # [m]
        width = int(lengths.max())
        columns = torch.arange(width, device=self.device) + (width - lengths[source])[:, None]  # [m, P]
        first, self.n = self.n, self.n + len(rows)
        if not hasattr(self, "cache"):
            self.cache = SlotCache(prefilled, self.slots, self.capacity)
        self.cache.fill(first, prefilled, source, columns.clamp_(max=width - 1))
        self.length[first : self.n] = lengths[source]
        self.count[first : self.n] = 0
        self.owner[first : self.n] = torch.tensor([p * self.sampling.samples + j for _, p, j in rows])
        self.uniform[first : self.n] = torch.stack([uniforms(self.sampling, self.prompts[p].id, j) for _, p, j in rows])
        self.longest = max(self.longest, width)
        self._advance(first, logits[source])

    def _prefill(self, tokens: list[tuple[int, ...]]) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
        """Forward prompts, padded on the left so that the last column is every prompt's last token.

        Returns lengths [prompts], logits [prompts, V] after the last token, and the keys and values.
        """
        width = max(map(len, tokens))
        ids = torch.tensor([(0,) * (width - len(t)) + t for t in tokens], device=self.device)  # [prompts, P]
        lengths = torch.tensor([len(t) for t in tokens], device=self.device)
        cache = DynamicCache()
        logits = self.engine.model(
            input_ids=ids,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            **self.engine.attention.prefill(lengths),
        ).logits
        states = prefilled_states(cache)
        if torch.is_autocast_enabled(self.device.type):  # as attention casts them, once
            kind = torch.get_autocast_dtype(self.device.type)
            states = [(keys.to(kind), values.to(kind)) for keys, values in states]
        return lengths, logits[:, -1], states

    def _decode(self) -> Tensor:
        """Forward the last token of every row in use. Returns logits [n, V]."""
        position = self.length[: self.n]
        self.longest += 1
        self.cache.aim(position, self.longest)
        if self.steps:
            mask = self.engine.attention.bias(position, self.longest)
            logits = self.steps(self.token[: self.n], position, self.cache, mask)
            self.length[: self.n] += 1
            return logits
        logits = self.engine.model(
            input_ids=self.token[: self.n, None],
            position_ids=position[:, None],
            past_key_values=self.cache.for_model,
            use_cache=True,
            **self.engine.attention.decode(position, self.longest),
        ).logits
        self.length[: self.n] += 1
        return logits[:, -1]

    def _advance(self, first: int, logits: Tensor) -> None:
        """Sample a token for the rows first .. n - 1 from logits [n - first, V]; drop those that finished."""
        rows = slice(first, self.n)
        column = self.count[rows, None]  # [n - first, 1]
        uniform = self.uniform[rows].gather(1, column).squeeze(1)  # [n - first]
        chunk = max(1, CHOOSE_ELEMENTS // logits.shape[-1])
        chunks = zip(logits.split(chunk), uniform.split(chunk), strict=True)
        choices = [choose(some_logits, u, self.sampling) for some_logits, u in chunks]
        tokens, logp = choices[0] if len(choices) == 1 else map(torch.cat, zip(*choices, strict=True))
        self.log_tokens[rows].scatter_(1, column, tokens[:, None])
        self.log_logp[rows].scatter_(1, column, logp[:, None])
        self.token[rows] = tokens
        self.count[rows] += 1
        self.sampled += len(tokens)
        self._drop(first, self.is_eos[tokens] | (self.count[rows] >= self.sampling.max_new_tokens))
        if self.progress is not None:
            self.progress(self.done, self.total, self.sampled)

    def _drop(self, first: int, finished: Tensor) -> None:
        """Take the finished [n - first] rows out: the rows in use at the end move into the holes."""
        leaving = int(finished.sum())
        if not leaving:
            return
        self._read_out(first + finished.nonzero().squeeze(1))
        n = self.n - leaving
        target = first + finished[: n - first].nonzero().squeeze(1)
        source = n + (~finished[n - first :]).nonzero().squeeze(1)
        if len(source):
            self.cache.move(source, target, self.longest)
            self.state[:, target] = self.state[:, source]
            for rows in (self.uniform, self.log_tokens, self.log_logp):
                rows[target] = rows[source]
        self.n, self.done = n, self.done + leaving
        self.longest = int(self.length[:n].max()) if n else 0

    def _read_out(self, rows: Tensor) -> None:
        """Turn finished rows [m] into completions and hand them out."""
        _, _, count, owner = self.state[:, rows].tolist()
        tokens, logp = (log[rows, : max(count)].cpu() for log in (self.log_tokens, self.log_logp))  # [m, longest]
        if not bool(logp.isfinite().all()):  # what earlier rows left behind `count` was looked at with them
            raise FloatingPointError("the model's logits are not finite: its weights diverged or overflow their dtype")
        for t, lp, length, row in zip(tokens, logp, count, owner, strict=True):
            finish = "stop" if int(t[length - 1]) in self.engine.eos_ids else "length"
            completion = Completion(t[:length].clone(), lp[:length].clone(), finish, self.engine.version)
            self.completed[row] = completion
            if self.finished is not None:
                self.finished(row // self.sampling.samples, row % self.sampling.samples, completion)

    def _assemble(self) -> list[list[Completion]]:
        samples = self.sampling.samples
        return [[self.completed[start + j] for j in range(samples)] for start in range(0, self.total, samples)]
