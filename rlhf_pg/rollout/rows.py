"""How the native engine forwards its rows: one token each beside cached keys and values, or every row whole.

Cached is the fast way. Whole rows need nothing but the causal model itself, so they serve every other architecture:
recurrent states, caches of several shapes, positions that cannot be given.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from rlhf_pg.rollout.attention import Attention, embedding_weight
from rlhf_pg.rollout.cache import SlotCache, prefilled_states
from rlhf_pg.rollout.llama_decode import LlamaDecode

Prompts = list[tuple[int, ...]]


class Rows(Protocol):
    """The rows in use of one `generate`; they are always the first ones."""

    def admit(self, first: int, prompts: Prompts, source: Tensor) -> Tensor:
        """Put prompt source[i] into row first + i, for all of source [m]; return logits [m, V] after it."""
        ...

    def decode(self, tokens: Tensor, position: Tensor, longest: int) -> Tensor:
        """Append token i at position i, both [n], all below `longest`, to row i; return logits [n, V] after it."""
        ...

    def move(self, source: Tensor, target: Tensor, longest: int) -> None:
        """Copy rows `source` [m] over rows `target` [m], up to column `longest`."""
        ...


class CachedRows(Rows):
    """Rows as keys and values. Prompts are forwarded once and copied to the rows of their group."""

    cache: SlotCache  # from the first prefill on, which shows the shape of keys and values

    def __init__(
        self, model: PreTrainedModel, attention: Attention, slots: int, capacity: int, *, llama_decode: bool
    ) -> None:
        self.model, self.attention, self.slots, self.capacity = model, attention, slots, capacity
        self.device = embedding_weight(model).device
        self.steps = LlamaDecode(model, slots) if llama_decode else None

    def admit(self, first: int, prompts: Prompts, source: Tensor) -> Tensor:
        lengths, logits, prefilled = self._prefill(prompts)
        width = int(lengths.max())
        columns = torch.arange(width, device=self.device) + (width - lengths[source])[:, None]  # [m, P]
        if not hasattr(self, "cache"):
            self.cache = SlotCache(prefilled, self.slots, self.capacity)
        self.cache.fill(first, prefilled, source, columns.clamp_(max=width - 1))
        return logits[source]

    def _prefill(self, tokens: Prompts) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
        """Forward prompts, padded on the left so that the last column is every prompt's last token.

        Returns lengths [prompts], logits [prompts, V] after the last token, and the keys and values.
        """
        width = max(map(len, tokens))
        ids = torch.tensor([(0,) * (width - len(t)) + t for t in tokens], device=self.device)  # [prompts, P]
        lengths = torch.tensor([len(t) for t in tokens], device=self.device)
        cache = DynamicCache()
        logits = self.model(
            input_ids=ids,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            **self.attention.prefill(lengths),
        ).logits
        states = prefilled_states(cache)
        if torch.is_autocast_enabled(self.device.type):  # as attention casts them, once
            kind = torch.get_autocast_dtype(self.device.type)
            states = [(keys.to(kind), values.to(kind)) for keys, values in states]
        return lengths, logits[:, -1], states

    def decode(self, tokens: Tensor, position: Tensor, longest: int) -> Tensor:
        self.cache.aim(position, longest)
        if self.steps:
            return self.steps(tokens, position, self.cache, self.attention.bias(position, longest))
        logits = self.model(
            input_ids=tokens[:, None],
            position_ids=position[:, None],
            past_key_values=self.cache.for_model,
            use_cache=True,
            **self.attention.decode(position, longest),
        ).logits
        return logits[:, -1]

    def move(self, source: Tensor, target: Tensor, longest: int) -> None:
        self.cache.move(source, target, longest)


class WholeRows(Rows):
    """Rows as tokens, padded on the right, where a causal model does not see it; all are forwarded for each token."""

    def __init__(self, model: PreTrainedModel, slots: int, capacity: int) -> None:
        self.model = model
        self.tokens = torch.zeros(slots, capacity, dtype=torch.int64, device=embedding_weight(model).device)

    def admit(self, first: int, prompts: Prompts, source: Tensor) -> Tensor:
        device = self.tokens.device
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        ids = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.int64, device=device)
        for row, prompt in zip(ids, prompts, strict=True):
            row[: len(prompt)] = torch.tensor(prompt, device=device)
        self.tokens[first : first + len(source), : ids.shape[1]] = ids[source]
        return self._logits(ids, lengths)[source]

    def decode(self, tokens: Tensor, position: Tensor, longest: int) -> Tensor:
        rows = self.tokens[: len(tokens)]
        rows.scatter_(1, position[:, None], tokens[:, None])
        return self._logits(rows[:, :longest], position + 1)

    def move(self, source: Tensor, target: Tensor, longest: int) -> None:
        self.tokens[target, :longest] = self.tokens[source, :longest]

    def _logits(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Return logits [n, V] after the last token of rows [n, T] of these lengths [n]."""
        logits = self.model(input_ids=ids, use_cache=False).logits
        return logits[torch.arange(len(ids), device=ids.device), lengths - 1]
