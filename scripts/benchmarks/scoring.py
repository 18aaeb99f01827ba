"""Peak memory of scoring sampled tokens, forward and backward, with a vocabulary as large as real ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.models import random_model
from benchmarks.ours import random_batch
from benchmarks.port import Answer, Port
from benchmarks.shapes import shape_of
from rlhf_pg.models.policy import Policy
from rlhf_pg.types import Batch

Score = Callable[[Any, Batch], Tensor]  # (model, batch) -> log-probs of the sampled tokens [B, C]


def ours(specification: dict[str, Any], port: Port) -> None:
    """The policy's own forward."""
    _serve(specification, port, lambda model, batch: Policy(model)(batch)[0])


def full(specification: dict[str, Any], port: Port) -> None:
    """log_softmax of the logits of all completion positions: logits and log-probs of [B, C, V] live together."""

    def score(model: Any, batch: Batch) -> Tensor:
        return _logits(model, batch).log_softmax(dim=-1).gather(2, batch.tokens[:, :, None]).squeeze(2)

    _serve(specification, port, score)


def lean(specification: dict[str, Any], port: Port) -> None:
    """The sampled logit minus logsumexp, row by row: no log-probs [B, C, V] in the forward, but a gradient as large."""

    def score(model: Any, batch: Batch) -> Tensor:
        logits = _logits(model, batch)
        chosen = logits.gather(2, batch.tokens[:, :, None]).squeeze(2)
        return chosen - torch.stack([row.logsumexp(dim=-1) for row in logits])

    _serve(specification, port, score)


def _logits(model: Any, batch: Batch) -> Tensor:
    """Return logits [B, C, V] of completion positions; every row is forwarded with its prompt."""
    sequences = torch.cat([batch.prompt_tokens[batch.group], batch.tokens], dim=1)  # [B, P + C]
    return model(input_ids=sequences, use_cache=False, logits_to_keep=batch.tokens.shape[1] + 1).logits[:, :-1]


def _serve(specification: dict[str, Any], port: Port, score: Score) -> None:
    shape = shape_of(specification["shape"])
    model, batch = random_model(shape.model).train(), random_batch(shape.model.vocabulary, shape)

    def take(_: Answer) -> Answer:
        model.zero_grad(set_to_none=True)
        logp = score(model, batch)
        logp.mean().backward()
        return {"tokens": logp.numel(), "logp": float(logp.detach().mean())}

    port.serve(take)
