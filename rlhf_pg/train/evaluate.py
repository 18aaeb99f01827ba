"""Held-out evaluation: generation and reward only. Greedy accuracy, pass@1, and unbiased pass@k with intervals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from rlhf_pg.config import Recipe
from rlhf_pg.functional.pass_at_k import bootstrap_interval, pass_at_k
from rlhf_pg.rewards.score import Scorer
from rlhf_pg.rollout import collect
from rlhf_pg.rollout.engine import Engine
from rlhf_pg.types import Prompt, Rollout, Sampling


def run(recipe: Recipe) -> int:
    """`rlhf-pg eval`: measure `model.path` on the held-out problems, print a table, write nothing."""
    from rlhf_pg.train.setup import build

    session = build(recipe, learn=False)
    try:
        with Progress() as bar, session.learner.backend.autocast():
            task = bar.add_task("evaluating")
            advance = lambda done, total, tokens: bar.update(task, completed=done, total=total)  # noqa: E731
            measured = evaluate(
                recipe, session.engine, session.tokenizer, session.scorer, session.eval_prompts, advance
            )
    finally:
        session.close()
    table = Table(
        "measure", "value", "95 % interval", title=f"{recipe.model.path}: {len(session.eval_prompts)} problems"
    )
    for name, value in measured.items():
        if not name.endswith(("_low", "_high")):
            low, high = measured.get(f"{name}_low"), measured.get(f"{name}_high")
            table.add_row(name, f"{value:.4g}", "" if low is None else f"{low:.3f} to {high:.3f}")
    Console().print(table)
    return 0


def evaluate(
    recipe: Recipe,
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    scorer: Scorer,
    prompts: Sequence[Prompt],
    progress: Callable[[int, int, int], None] | None = None,
    poll: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """`pass@k` for every k asked (over problems, with a 95 % bootstrap interval), `greedy`, and what was left out.

    A sample is correct when the recipe's first reward function gives it at least 1. Samples whose scoring failed are
    left out and counted. The random streams are the same at every evaluation of a run.
    """
    sampling = Sampling(
        samples=recipe.eval.samples,
        max_new_tokens=recipe.eval.max_new_tokens or recipe.rollout.max_new_tokens,
        temperature=recipe.eval.temperature,
        seed=recipe.run.seed,
    )
    given = engine, scorer, tokenizer, prompts
    sampled = collect.rollouts(*given, sampling, progress=progress, poll=poll)
    metrics = _pass_at_k(_verdicts(sampled), recipe.eval.k)
    metrics["failed"] = sum(r.score.reward is None for r in sampled)
    metrics["length_mean"] = float(np.mean([len(r.completion.tokens) for r in sampled]))
    if recipe.eval.greedy:
        once = Sampling(samples=1, max_new_tokens=sampling.max_new_tokens, temperature=0.0)
        greedy = _verdicts(collect.rollouts(*given, once, progress=progress, poll=poll))
        metrics |= _mean("greedy", [float(verdicts[0]) for verdicts in greedy.values()])
    return metrics


def _verdicts(rollouts: Sequence[Rollout]) -> dict[str, list[bool]]:
    """Per problem, whether each judged sample is right: the first reward function gave it at least 1."""
    verdicts: dict[str, list[bool]] = defaultdict(list)
    for rollout in rollouts:
        first = next(iter(rollout.score.parts.values()), None)
        if rollout.score.reward is not None and first is not None:
            verdicts[rollout.prompt.id].append(first >= 1.0)
    if not verdicts:
        raise ValueError("evaluation: no sample could be scored; see the reward function's error above")
    return verdicts


def _pass_at_k(verdicts: dict[str, list[bool]], ks: Sequence[int]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for k in ks:
        enough = [v for v in verdicts.values() if len(v) >= k]
        if enough:
            n, c = [len(v) for v in enough], [sum(v) for v in enough]
            metrics |= _mean(f"pass@{k}", [float(x) for x in np.asarray(pass_at_k(n, c, k))])
    return metrics


def _mean(name: str, values: Sequence[float]) -> dict[str, float]:
    low, high = bootstrap_interval(values)
    return {name: float(np.mean(values)), f"{name}_low": low, f"{name}_high": high}
