"""One process's share of a rollout step and its micro-batches: every prompt and completion as long as can be."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from rlhf_pg.config import ResolvedRecipe


@dataclass(frozen=True)
class Share:
    """`prompts` of a rollout step's prompts with all their samples: what one process has."""

    recipe: ResolvedRecipe
    prompt_length: int  # tokens, P
    prompts: int
    budget: int  # positions forwarded at once, at most: `update.tokens_per_microbatch`
    device: Literal["cpu", "cuda"] = "cpu"

    @property
    def completion_length(self) -> int:
        """C, in tokens."""
        return self.recipe.rollout.max_new_tokens

    @property
    def samples(self) -> int:
        """G, per prompt."""
        return self.recipe.rollout.samples_per_prompt

    @property
    def rows(self) -> int:
        """B, of a rollout step."""
        return self.prompts * self.samples

    @property
    def minibatch_prompts(self) -> int:
        """Prompts of one optimizer step."""
        return math.ceil(self.prompts / self.recipe.update.minibatches)

    @property
    def minibatch_positions(self) -> int:
        """Positions of one optimizer step."""
        return self.positions(self.minibatch_prompts, self.minibatch_prompts * self.samples)

    def micro_batch(self, prompts: int, factor: int = 1) -> tuple[int, int]:
        """Return (prompts, rows) of the largest micro-batch of `prompts` prompts within `factor` times the budget."""
        budget = factor * self.budget
        if not self.recipe.update.share_prompts:
            rows = min(prompts * self.samples, max(1, budget // (self.prompt_length + self.completion_length)))
            return math.ceil(rows / self.samples), rows
        groups = min(prompts, budget // (self.prompt_length + self.samples * (self.completion_length - 1)))
        if groups:
            return groups, groups * self.samples
        rows = (budget - self.prompt_length) // max(1, self.completion_length - 1)
        return 1, min(self.samples, max(1, rows))

    def positions(self, groups: int, rows: int) -> int:
        """Return how many positions the forward of `rows` rows of `groups` prompts covers, T."""
        if not self.recipe.update.share_prompts:
            return rows * (self.prompt_length + self.completion_length)
        return groups * self.prompt_length + rows * (self.completion_length - 1)

    @property
    def micro_batches(self) -> int:
        """Micro-batches of one optimizer step, at most."""
        groups, rows = self.micro_batch(self.minibatch_prompts)
        if not self.recipe.update.share_prompts:
            return math.ceil(self.minibatch_prompts * self.samples / rows)
        if rows < self.samples:
            return self.minibatch_prompts * math.ceil(self.samples / rows)
        return math.ceil(self.minibatch_prompts / groups)
