"""One process's share of a rollout step and its micro-batches: every prompt and completion as long as can be."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from rlhf_pg.config import ResolvedRecipe


@dataclass(frozen=True)
class Share:
    """Of `prompts` of the recipe's prompts, P = `prompt` tokens each."""

    recipe: ResolvedRecipe
    prompt: int  # tokens, P
    prompts: int  # of this process
    tokens: int  # positions forwarded at once
    device: Literal["cpu", "cuda"] = "cpu"

    @property
    def completion(self) -> int:
        return self.recipe.rollout.max_new_tokens

    @property
    def samples(self) -> int:
        return self.recipe.rollout.samples_per_prompt

    @property
    def rows(self) -> int:
        return self.prompts * self.samples

    @property
    def per_update(self) -> int:
        """Prompts per optimizer step."""
        return math.ceil(self.prompts / self.recipe.update.minibatches)

    def micro_batch(self, prompts: int, times: int = 1) -> tuple[int, int]:
        """(prompts, rows) of a full micro-batch of so many prompts, of `times` the usual size."""
        tokens = times * self.tokens
        if not self.recipe.update.share_prompts:
            rows = min(prompts * self.samples, max(1, tokens // (self.prompt + self.completion)))
            return math.ceil(rows / self.samples), rows
        groups = min(prompts, tokens // (self.prompt + self.samples * (self.completion - 1)))
        if groups:
            return groups, groups * self.samples
        return 1, min(self.samples, max(1, (tokens - self.prompt) // max(1, self.completion - 1)))

    def positions(self, groups: int, rows: int) -> int:
        """T of a micro-batch."""
        if not self.recipe.update.share_prompts:
            return rows * (self.prompt + self.completion)
        return groups * self.prompt + rows * (self.completion - 1)

    @property
    def micro_batches(self) -> int:
        """Per optimizer step, at most."""
        groups, rows = self.micro_batch(self.per_update)
        if not self.recipe.update.share_prompts:
            return math.ceil(self.per_update * self.samples / rows)
        whole = rows >= self.samples
        return math.ceil(self.per_update / groups) if whole else self.per_update * math.ceil(self.samples / rows)
