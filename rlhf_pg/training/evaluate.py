"""Evaluate on held-out problems, by generation and reward only: greedy accuracy, and unbiased pass@k with intervals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from rlhf_pg.functional.pass_at_k import bootstrap_interval, pass_at_k
from rlhf_pg.rollout import collect
from rlhf_pg.training.metrics import Judged, judged_groups
from rlhf_pg.training.setup import Session
from rlhf_pg.types import Sampling


def evaluate(
    session: Session,
    progress: Callable[[int, int, int], None] | None = None,
    poll: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Return `pass@k` for every k of `eval.k`, `greedy`, each with a 95 % bootstrap interval over problems, and counts.

    A sample is correct when the recipe's first reward function gives it at least 1. Samples whose scoring failed are
    left out and counted in `failed`. The random streams are the same at every evaluation of a run. Problems are shared
    out among the ranks; the result is of all of them.
    """
    recipe = session.recipe
    sampling = Sampling(
        samples=recipe.eval.samples,
        max_new_tokens=recipe.eval.max_new_tokens or recipe.rollout.max_new_tokens,
        temperature=recipe.eval.temperature,
        seed=recipe.run.seed,
    )
    judged = _sample(session, sampling, progress, poll)
    metrics = _pass_at_k(_verdicts(judged), recipe.eval.k)
    metrics["failed"] = sum(sample.reward is None for sample in judged)
    metrics["length_mean"] = float(np.mean([sample.length for sample in judged]))
    if recipe.eval.greedy:
        greedy = Sampling(samples=1, max_new_tokens=sampling.max_new_tokens, temperature=0.0)
        of_problem = _verdicts(_sample(session, greedy, progress, poll))
        metrics |= _mean("greedy", [float(verdicts[0]) for verdicts in of_problem.values()])
    return metrics


def _sample(session: Session, sampling: Sampling, progress, poll) -> list[Judged]:
    """Sample and judge the held-out problems; return the samples of all ranks."""
    backend = session.learner.backend
    prompts = backend.ranks.share(session.eval_prompts)
    with backend.ranks.independently("evaluation"), backend.autocast():
        rollouts = collect.rollouts(
            session.engine, session.scorer, session.tokenizer, prompts, sampling, progress=progress, poll=poll
        )
    return [sample for group in judged_groups(backend.ranks, rollouts, sampling.samples) for sample in group]


def _verdicts(judged: Sequence[Judged]) -> dict[str, list[bool]]:
    """Return, per problem, whether each judged sample is right: the first reward function gave it at least 1."""
    verdicts: dict[str, list[bool]] = defaultdict(list)
    for sample in judged:
        first = next(iter(sample.parts.values()), None)
        if sample.reward is not None and first is not None:
            verdicts[sample.prompt].append(first >= 1.0)
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
