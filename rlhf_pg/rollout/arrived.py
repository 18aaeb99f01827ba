"""The completions of one request that a worker has sent, each looked at before it counts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from rlhf_pg.rollout import protocol
from rlhf_pg.rollout.engine import RolloutRequest
from rlhf_pg.types import Completion

LOGP_ROUNDING = 1e-3  # by which the log of a probability of 1 may be above 0


class Fault(Exception):
    """The worker did not do what it was asked, in a way that another attempt may mend."""


@dataclass
class Arrived:
    """What has come of `request`, over all attempts at it: a completion that came again does not count again."""

    request: RolloutRequest
    worker: str  # its name, in messages
    eos_ids: Collection[int]
    vocabulary: int
    rows: dict[tuple[int, int], Completion] = field(default_factory=dict)  # by place, in the order they came in
    reported: int = 0  # tokens sampled, as the worker says

    def __post_init__(self) -> None:
        for prompt, group in enumerate(self.request.groups or ()):
            self.rows |= {(prompt, sample): row for sample, row in enumerate(group)}
        self.finished = sum(len(row.tokens) for row in self.rows.values())  # tokens of `rows`

    def add(self, header: protocol.Header, tensors: Mapping[str, Tensor]) -> None:
        """Add what a message brings; the last one completes the request. Raises Fault if that cannot be right."""
        request, version = self.request, header["version"]
        if version != request.version:
            raise Fault(f"{self.worker} samples from weights of version {version}, not {request.version}")
        for place, row in protocol.unpack_rows(header, tensors):
            fault = self._fault(place, row)
            if fault:
                raise Fault(f"{self.worker} sent a wrong completion of prompt {place[0]}: {fault}")
            if place not in self.rows:
                self.rows[place] = row
                self.finished += len(row.tokens)
        self.reported = max(self.reported, header.get("progress", (0, 0, 0))[2])
        if header.get("last"):
            if len(self.rows) < request.rows:
                raise Fault(f"{self.worker} ended with {len(self.rows)} of {request.rows} completions")
            samples = range(request.sampling.samples)
            request.groups = [[self.rows[n, j] for j in samples] for n in range(len(request.prompts))]
            request.seconds = header["seconds"]

    @property
    def tokens(self) -> int:
        """How many are sampled, those of unfinished completions included as far as is known."""
        return self.finished if len(self.rows) == self.request.rows else max(self.reported, self.finished)

    def _fault(self, place: tuple[int, int], row: Completion) -> str:
        """Return what is impossible about a completion; "" if nothing."""
        tokens, sampling, version = row.tokens, self.request.sampling, self.request.version
        if not (0 <= place[0] < len(self.request.prompts) and 0 <= place[1] < sampling.samples):
            return "one of no such place"
        if row.version != version:
            return f"of weights of version {row.version}, not {version}"
        if not 0 < len(tokens) <= sampling.max_new_tokens or len(row.logp) != len(tokens):
            limit = sampling.max_new_tokens
            return f"{len(tokens)} tokens and {len(row.logp)} log-probs, at most {limit} were asked for"
        if not 0 <= int(tokens.min()) <= int(tokens.max()) < self.vocabulary:
            return "a token outside the vocabulary"
        if not bool((row.logp.isfinite() & (row.logp < LOGP_ROUNDING)).all()):
            return "a log-prob that is none"
        stops = [t for t, token in enumerate(tokens.tolist()) if token in self.eos_ids]
        if stops != ([len(tokens) - 1] if row.finish == "stop" else []):
            return f"it says {row.finish!r}, with end-of-sequence tokens at {stops}"
        if row.finish != "stop" and len(tokens) != sampling.max_new_tokens:
            return f"it was cut at {len(tokens)} of {sampling.max_new_tokens} tokens"
        return ""
