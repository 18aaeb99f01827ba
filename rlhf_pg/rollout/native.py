"""The in-process engine: samples from the live weights of the model being trained.

A queue of prompts feeds a fixed number of slots. A prompt is prefilled once and its keys and values are copied to the
rows of its group; all rows in use then decode one token at a time. A row that finishes is handed out and leaves at once
(the last row in use moves into its place), and when enough slots are free, or none is in use, they are refilled from
the queue. rows.py says how they are forwarded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_pg.models.context import context_length
from rlhf_pg.models.exact import evaluation_mode, random_tokens
from rlhf_pg.models.llama_family import in_llama_family
from rlhf_pg.rollout.attention import Attention, embedding_weight
from rlhf_pg.rollout.engine import Engine, Finished, Progress, check_request, check_settings
from rlhf_pg.rollout.llama_decode import can_decode
from rlhf_pg.rollout.rows import CachedRows, Rows, WholeRows
from rlhf_pg.rollout.sampling import choose, uniforms
from rlhf_pg.rollout.scheduler import Admission, Queue
from rlhf_pg.rollout.weights import overwrite
from rlhf_pg.types import Completion, Prompt, Sampling

CACHE_LIMIT = 2e-4  # of a log-prob in float32, between cached and whole rows
CHOOSE_ELEMENTS = 2**24  # logits turned into tokens at once: bounds the fp32 and int64 copies


class NativeEngine(Engine):
    """Samples with `model` itself, in this process. See `Engine` for what `generate` promises.

    model: a transformers causal language model, or one wrapped by PEFT; eos_ids end a completion; slots: rows decoded
    at once, which bounds the memory of keys and values. Sampling happens in evaluation mode, so from the policy without
    dropout; every submodule's mode is put back afterwards. Dtype, requires_grad and random generators are not touched.
    A model that the cache cannot serve, or does not serve exactly, has its rows forwarded whole for each token.
    """

    def __init__(self, model: PreTrainedModel, eos_ids: Sequence[int], slots: int = 256, version: int = 0) -> None:
        check_settings(slots, eos_ids)
        self.model, self.eos_ids, self.slots, self.version = model, tuple(eos_ids), slots, version
        self.attention: Attention | None = None  # None: rows are forwarded whole
        self.llama_decode = can_decode(model)
        self.uncached = ""  # why
        try:
            self.attention = Attention(model)
            if not in_llama_family(model.get_decoder()):
                self.uncached = self._fault_of_cache()
        except ValueError as error:
            self.uncached = str(error)
        if self.uncached:
            self.attention = None

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        progress: Progress | None = None,
        finished: Finished | None = None,
    ) -> list[list[Completion]]:
        """See `Engine.generate`. Also raises FloatingPointError when the model's logits are not finite."""
        config = self.model.config
        check_request(prompts, sampling, context_length(config), config.get_text_config().vocab_size)
        with torch.no_grad(), evaluation_mode(self.model):
            return _Generation(self, prompts, sampling, progress, finished).completions()

    @torch.no_grad()
    def _fault_of_cache(self) -> str:
        """Return how log-probs of a few sampled tokens differ from those of whole rows; "" but for rounding.

        Prompts are ragged, rows end at different times and fewer slots than rows are there, as in training.
        """
        ids = random_tokens(self.model, rows=3).tolist()
        prompts = [Prompt(str(i), "", tuple(row[: 3 * i + 2])) for i, row in enumerate(ids)]
        sampling = Sampling(samples=2, max_new_tokens=10)
        vocabulary = self.model.config.get_text_config().vocab_size
        eos_ids, slots = self.eos_ids, self.slots
        self.eos_ids, self.slots = tuple(range(0, vocabulary, 7)), 4
        try:
            with evaluation_mode(self.model):
                groups = _Generation(self, prompts, sampling, None, None).completions()
                worst = max(
                    self._gap(prompt, completion)
                    for prompt, group in zip(prompts, groups, strict=True)
                    for completion in group
                )
        except Exception as error:  # from any model's own code
            return f"{type(error).__name__}: {error}".splitlines()[0]
        finally:
            self.eos_ids, self.slots = eos_ids, slots
        limit = max(CACHE_LIMIT, 8 * torch.finfo(embedding_weight(self.model).dtype).eps)
        return "" if worst <= limit else f"log-probs with cached keys and values are off by {worst:.1e}"

    def _gap(self, prompt: Prompt, completion: Completion) -> float:
        """Return the largest difference of a completion's log-probs to those of its row forwarded alone."""
        tokens = torch.cat([torch.tensor(prompt.tokens), completion.tokens]).to(embedding_weight(self.model).device)
        logits = self.model(input_ids=tokens[None], use_cache=False).logits[0, len(prompt.tokens) - 1 : -1]
        logp = logits.float().log_softmax(dim=-1).gather(1, tokens[len(prompt.tokens) :, None])[:, 0]
        return float((logp.cpu() - completion.logp).abs().max())

    def load_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Copy tensors over the live weights by state-dict name; no tensors: the live weights already are `version`.

        Raises ValueError, before anything is changed, for an unknown name or a wrong shape.
        """
        overwrite(self.model, tensors)
        self.version = version

    def close(self) -> None:
        """Do nothing: keys and values have memory during a `generate` only."""


class _Generation:
    """The state of one `generate`. Rows 0 .. n - 1 of every buffer are in use."""

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
        self.state = torch.zeros(4, self.slots, dtype=torch.int64, device=self.device)
        # Each [slots]. token: sampled, not yet forwarded; length: of the cache row; owner: prompt * samples + sample
        self.token, self.length, self.count, self.owner = self.state
        shape = self.slots, sampling.max_new_tokens
        self.uniform = torch.zeros(shape, dtype=torch.float64, device=self.device)
        self.log_tokens = torch.zeros(shape, dtype=torch.int64, device=self.device)  # valid in columns < count
        self.log_logp = torch.zeros(shape, dtype=torch.float32, device=self.device)
        self.is_eos = self._eos_table()
        capacity = max(len(prompt.tokens) for prompt in prompts) + sampling.max_new_tokens  # columns
        self.rows: Rows = WholeRows(engine.model, self.slots, capacity)
        if engine.attention:
            lean = engine.llama_decode
            self.rows = CachedRows(engine.model, engine.attention, self.slots, capacity, llama_decode=lean)
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
        prompts = [self.prompts[admission.prompt].tokens for admission in wave]
        lengths = torch.tensor([len(tokens) for tokens in prompts], device=self.device)
        rows = [(place, a.prompt, a.first + j) for place, a in enumerate(wave) for j in range(a.rows)]
        source = torch.tensor([place for place, _, _ in rows], device=self.device)  # [m]
        first, self.n = self.n, self.n + len(rows)
        logits = self.rows.admit(first, prompts, source)
        self.length[first : self.n] = lengths[source]
        self.count[first : self.n] = 0
        self.owner[first : self.n] = torch.tensor([p * self.sampling.samples + j for _, p, j in rows])
        self.uniform[first : self.n] = torch.stack([uniforms(self.sampling, self.prompts[p].id, j) for _, p, j in rows])
        self.longest = max(self.longest, int(lengths.max()))
        self._advance(first, logits)

    def _decode(self) -> Tensor:
        """Forward the last token of every row in use. Returns logits [n, V]."""
        self.longest += 1
        logits = self.rows.decode(self.token[: self.n], self.length[: self.n], self.longest)
        self.length[: self.n] += 1
        return logits

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
            self.rows.move(source, target, self.longest)
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
