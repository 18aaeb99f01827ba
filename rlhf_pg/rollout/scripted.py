"""An engine that plays given completions: for tests of the training loop and of rewards, without a model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from rlhf_pg.rollout.engine import Engine, Finished, Progress, check_request
from rlhf_pg.types import Completion, Prompt, Sampling


class ScriptedEngine(Engine):
    """Plays `script[prompt.id]`, a list of token lists: sample j gets entry j, modulo the list's length.

    `logp[prompt.id]`, of the same shape, gives the log-probs; without it every token has that of a uniform draw from
    `vocabulary` tokens. A line ending in one of `eos_ids`, within max_new_tokens, finishes with "stop"; a longer one is
    cut and finishes with "length". Names and tensors given to `load_weights` are noted in `loaded`.
    """

    def __init__(
        self,
        script: Mapping[str, Sequence[Sequence[int]]],
        eos_ids: Sequence[int],
        vocabulary: int = 2,
        logp: Mapping[str, Sequence[Sequence[float]]] | None = None,
        version: int = 0,
    ) -> None:
        self.script, self.logp = script, logp
        self.eos_ids, self.vocabulary = frozenset(eos_ids), vocabulary
        self.version = version
        self.loaded: dict[str, Tensor] = {}

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        progress: Progress | None = None,
        finished: Finished | None = None,
    ) -> list[list[Completion]]:
        """See `Engine.generate`. Raises ValueError for a prompt that is not in the script."""
        check_request(prompts, sampling)
        missing = [prompt.id for prompt in prompts if not self.script.get(prompt.id)]
        if missing:
            raise ValueError(f"the script has no completion for prompts {missing}")
        played: list[list[Completion]] = []
        tokens = 0
        for number, prompt in enumerate(prompts):
            played.append([self._play(prompt.id, j, sampling.max_new_tokens) for j in range(sampling.samples)])
            tokens += sum(len(completion.tokens) for completion in played[-1])
            if finished is not None:
                for j, completion in enumerate(played[-1]):
                    finished(number, j, completion)
            if progress is not None:
                progress(len(played) * sampling.samples, len(prompts) * sampling.samples, tokens)
        return played

    def _play(self, prompt_id: str, sample: int, limit: int) -> Completion:
        lines = self.script[prompt_id]
        line = list(lines[sample % len(lines)])[:limit]
        stops = [place for place, token in enumerate(line) if token in self.eos_ids]
        if not line or (stops and stops[0] != len(line) - 1):
            raise ValueError(f"script line {sample % len(lines)} of {prompt_id!r} is empty or goes on after an EOS")
        if self.logp is None:
            logp = torch.full((len(line),), -math.log(self.vocabulary))
        else:
            logp = torch.tensor(self.logp[prompt_id][sample % len(lines)][:limit], dtype=torch.float32)
        return Completion(torch.tensor(line), logp, "stop" if stops else "length", self.version)

    def load_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Note the weights in `loaded`: nothing is sampled from them."""
        self.loaded.update(tensors)
        self.version = version

    def close(self) -> None:
        """Do nothing."""
