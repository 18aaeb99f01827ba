"""One process's share of a rollout step and its micro-batches: every prompt and completion as long as can be."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from rlhf_pg.config import ResolvedRecipe
from rlhf_pg.tasks.base import DEFAULT_COUNT, resolve


@dataclass(frozen=True)
class Share:
    """`prompts` of a rollout step's prompts with all their samples: what one process has."""

    recipe: ResolvedRecipe
    prompt_length: int  # tokens, P
    prompts: int
    budget: int  # positions forwarded at once, at most: `update.tokens_per_microbatch`
    device: Literal["cpu", "cuda"] = "cpu"
    problems: int | None = None  # held-out ones of this process; default: all that the recipe is known to have
    problem_length: int | None = None  # of the longest, in tokens; default: P

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
    def generations(self) -> tuple[tuple[int, int], ...]:
        """Return (rows sampled at once, tokens of the longest) of a rollout step, and of an evaluation if there is one.

        As many rows as fit the slots where the number of problems is not known.
        """
        length = self.prompt_length + self.completion_length
        step = rows_at_once(self.recipe, self.prompts, problems=0), length
        if self.recipe.data.eval is None:
            return (step,)
        longest = self.recipe.eval.max_new_tokens or self.completion_length
        problems = held_out_problems(self.recipe) if self.problems is None else self.problems
        evaluation = rows_at_once(self.recipe, 0, problems), (self.problem_length or self.prompt_length) + longest
        return step, evaluation

    @property
    def rows_at_once(self) -> int:
        """Rows that an engine samples at once, at most."""
        return max(rows for rows, _ in self.generations)

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


def rows_at_once(recipe: ResolvedRecipe, prompts: int, problems: int | None) -> int:
    """Return how many rows fit the slots, of `prompts` of a rollout step and `problems` of an evaluation; None: any."""
    rollout, evaluated = recipe.rollout, recipe.eval.samples
    rows = rollout.slots if problems is None else max(prompts * rollout.samples_per_prompt, problems * evaluated)
    return max(1, min(rollout.slots, rows))


def held_out_problems(recipe: ResolvedRecipe) -> int | None:
    """Return how many held-out problems a recipe has, at most, without reading its data; None if that is not known."""
    source = recipe.data.eval
    if source is None:
        return 0
    generated = source.path is None and source.dataset is None and source.task and resolve(source.task).problems
    most = source.options.get("count") or DEFAULT_COUNT.get(source.split or "heldout") if generated else None
    return min(filter(None, (source.limit, most)), default=None)
