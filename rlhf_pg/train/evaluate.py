"""Held-out evaluation: generation and reward only. Greedy accuracy, pass@1, and unbiased pass@k with intervals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from rlhf_pg.config import ResolvedRecipe
from rlhf_pg.functional.pass_at_k import bootstrap_interval, pass_at_k
from rlhf_pg.rollout import collect
from rlhf_pg.train.metrics import Judged, judged_groups
from rlhf_pg.train.setup import Session, build
from rlhf_pg.types import Sampling


def run(recipe: ResolvedRecipe) -> int:
    """`rlhf-pg eval`: measure `model.path` on the held-out problems, print a table, write nothing."""
    session = build(recipe, learn=False)
    try:
        with Progress(disable=not session.learner.backend.ranks.first) as bar:
            task = bar.add_task("evaluating")
            measured = evaluate(session, lambda done, total, tokens: bar.update(task, completed=done, total=total))
    finally:
        session.close()
    if not session.learner.backend.ranks.first:
        return 0
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
    session: Session,
    progress: Callable[[int, int, int], None] | None = None,
    poll: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """`pass@k` for every k asked (over problems, with a 95 % bootstrap interval), `greedy`, and what was left out.

    A sample is correct when the recipe's first reward function gives it at least 1. Samples whose scoring failed are
    left out and counted. The random streams are the same at every evaluation of a run. Problems are shared out among
    the ranks; the result is of all of them.
    """
    recipe = session.recipe
    sampling = Sampling(
        samples=recipe.eval.samples,
        max_new_tokens=recipe.eval.max_new_tokens or recipe.rollout.max_new_tokens,
        temperature=recipe.eval.temperature,
        seed=recipe.run.seed,
    )
    sampled = _sample(session, sampling, progress, poll)
    metrics = _pass_at_k(_verdicts(sampled), recipe.eval.k)
    metrics["failed"] = sum(one.reward is None for one in sampled)
    metrics["length_mean"] = float(np.mean([one.length for one in sampled]))
    if recipe.eval.greedy:
        once = Sampling(samples=1, max_new_tokens=sampling.max_new_tokens, temperature=0.0)
        greedy = _verdicts(_sample(session, once, progress, poll))
        metrics |= _mean("greedy", [float(verdicts[0]) for verdicts in greedy.values()])
    return metrics


def _sample(session: Session, sampling: Sampling, progress, poll) -> list[Judged]:
    """The held-out problems of all ranks, sampled and judged."""
    backend = session.learner.backend
    mine = backend.ranks.share(session.eval_prompts)
    with backend.ranks.apart("evaluation"), backend.autocast():
        given = session.engine, session.scorer, session.tokenizer, mine, sampling
        sampled = collect.rollouts(*given, progress=progress, poll=poll)
    return [one for group in judged_groups(backend.ranks, sampled, sampling.samples) for one in group]


def _verdicts(judged: Sequence[Judged]) -> dict[str, list[bool]]:
    """Per problem, whether each judged sample is right: the first reward function gave it at least 1."""
    verdicts: dict[str, list[bool]] = defaultdict(list)
    for one in judged:
        first = next(iter(one.parts.values()), None)
        if one.reward is not None and first is not None:
            verdicts[one.prompt].append(first >= 1.0)
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
