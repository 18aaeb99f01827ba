"""The completions of one request to a rollout server, over all attempts at it, each looked at before it counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from rlhf_pg.rollout.engine import Finished, Progress
from rlhf_pg.types import Completion, Prompt, Sampling


class Fault(Exception):
    """The server did not do what it was asked, in a way that another attempt may mend."""


class Left(BaseException):
    """What `progress` or `finished` raised, `error`: not a fault of the server, whatever it is."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Asked(Protocol):
    """What completions must fit: the engine that asks for them."""

    version: int
    vocabulary: int
    eos_ids: frozenset[int]


class Answer:
    """The completions of one request, over all attempts at it: a row that has come is kept, and comes once."""

    def __init__(
        self,
        engine: Asked,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        progress: Progress | None = None,
        finished: Finished | None = None,
    ) -> None:
        self.engine, self.prompts, self.sampling = engine, prompts, sampling
        self.progress, self.finished = progress, finished
        self.total, self.seen = len(prompts) * sampling.samples, 0
        self.rows: dict[tuple[int, int], Completion] = {}

    def add(self, prompt: int, place: int, row: Completion) -> None:
        """Keep a row and hand it out, if it has not come before. Fault if it cannot be what was asked for."""
        fault = self._fault(row)
        if not (0 <= prompt < len(self.prompts) and 0 <= place < self.sampling.samples):
            fault = "one of no such place"
        if fault:
            raise Fault(f"the server sent a wrong completion of prompt {prompt}: {fault}")
        if (prompt, place) not in self.rows:
            self.rows[prompt, place] = row
            if self.finished is not None:
                self._call(self.finished, prompt, place, row)

    def look(self) -> None:
        """Show how far it is; `progress` may raise, to leave at once."""
        if self.progress is not None:
            done = sum(len(row.tokens) for row in self.rows.values())
            self.seen = max(self.seen, done)
            whole = len(self.rows) == self.total
            self._call(self.progress, len(self.rows), self.total, done if whole else self.seen)

    def _call(self, function: Callable[..., None], *values: Any) -> None:
        try:
            function(*values)
        except BaseException as error:
            raise Left(error) from error

    def whole(self) -> None:
        if len(self.rows) < self.total:
            raise Fault(f"the server ended with {len(self.rows)} of {self.total} completions")

    def groups(self) -> list[list[Completion]]:
        return [[self.rows[n, j] for j in range(self.sampling.samples)] for n in range(len(self.prompts))]

    def _fault(self, row: Completion) -> str:
        """What is impossible about a completion; "" if nothing."""
        tokens, limit = row.tokens, self.sampling.max_new_tokens
        if row.version != self.engine.version:
            return f"of weights of version {row.version}, not {self.engine.version}"
        if not 0 < len(tokens) <= limit or len(row.logp) != len(tokens):
            return f"{len(tokens)} tokens and {len(row.logp)} log-probs, at most {limit} were asked for"
        if not 0 <= int(tokens.min()) <= int(tokens.max()) < self.engine.vocabulary:
            return "a token outside the vocabulary"
        if not bool((row.logp.isfinite() & (row.logp < 1e-3)).all()):
            return "a log-prob that is none"
        stops = [place for place, token in enumerate(tokens.tolist()) if token in self.engine.eos_ids]
        if stops != ([len(tokens) - 1] if row.finish == "stop" else []):
            return f"it says {row.finish!r}, with end-of-sequence tokens at {stops}"
        if row.finish != "stop" and len(tokens) != limit:
            return f"it was cut at {len(tokens)} of {limit} tokens"
        return ""
