"""The first lines of a run: what is trained, where, how much of it, what that is expected to take, in which folder."""

from __future__ import annotations

from typing import Any

from rlhf_pg.config import ResolvedRecipe
from rlhf_pg.display.figures import counted, duration
from rlhf_pg.estimate import hardware
from rlhf_pg.estimate.run_estimate import RunEstimate
from rlhf_pg.estimate.tables import count_text, memory_text, seconds
from rlhf_pg.training import launch_facts


def lines(recipe: ResolvedRecipe, launch: dict[str, Any], estimate: RunEstimate | None) -> list[str]:
    """Return six lines. `launch`: of `launch_facts`; `estimate` None: of this model there is none."""
    rollout, kl = recipe.rollout, recipe.kl
    distance = f"KL {kl.coefficient:g} in the {kl.placement}" if kl.coefficient else "no KL term"
    goes_on = f", from step {launch['from_step']}" if launch["from_step"] else ""
    batch = f"{rollout.prompts_per_step:,} prompts x {rollout.samples_per_prompt:,} samples"
    per_step = recipe.update.epochs * recipe.update.minibatches
    updates = f", {counted(per_step, 'optimizer step')} each" if recipe.algorithm.update == "gradient" else ""
    return [
        f"{recipe.algorithm.name} on {recipe.model.path}{_size(estimate)}; {distance}",
        launch_facts.placed(launch),
        launch_facts.software(launch),
        f"{counted(recipe.run.steps, 'step')} of {batch}, at most {rollout.max_new_tokens:,} tokens{updates}",
        f"expected: {_expected(recipe, estimate)}",
        f"folder: {recipe.run.dir}{goes_on}",
    ]


def _size(estimate: RunEstimate | None) -> str:
    if estimate is None:
        return ""
    size = estimate.size
    trained = "all" if size.trainable == size.parameters else count_text(size.trainable)
    return f", {count_text(size.parameters)} parameters, {trained} trained"


def _expected(recipe: ResolvedRecipe, estimate: RunEstimate | None) -> str:
    """Return memory, and time where the device is one whose rates are known; elsewhere the first step will tell."""
    if estimate is None:
        return "not known for a model of this shape; the time left is shown after the first step"
    memory = memory_text(estimate.memory)
    time = estimate.time_on(hardware.this_card(recipe.model.dtype))
    if time is None:
        return f"{memory}; the time after the first step"
    return f"{memory}; {seconds(time.step)} s a step, {duration(time.step * recipe.run.steps)} in all"
