"""rlhf_pg as a contender in learning: the loop of `rlhf-pg train`, and the judge of everyone's held-out accuracy."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.learn import Course
from benchmarks.ours import open_recipe
from benchmarks.port import Answer, Port
from rlhf_pg import config
from rlhf_pg.reward_fns.gsm8k import gsm8k
from rlhf_pg.rollout.engine import Engine
from rlhf_pg.rollout.token_texts import hidden_ids, text_of
from rlhf_pg.training import loop
from rlhf_pg.types import Prompt, Sampling


def recipe_of(specification: dict[str, Any], folder: str) -> config.ResolvedRecipe:
    """Return the recipe of one seed, with its run in `folder`."""
    run = {"dir": folder, "steps": specification["limit"], "seed": specification["seed"], "preflight": False}
    return config.parse(specification["recipe"] | {"run": run}, config.Recipe)


def greedy_accuracy(engine: Engine, tokenizer: Any, prompts: Sequence[Prompt], max_new_tokens: int) -> float:
    """Return the share of prompts whose most likely completion gsm8k accepts."""
    groups = engine.generate(prompts, Sampling(samples=1, max_new_tokens=max_new_tokens, temperature=0.0))
    hidden = hidden_ids(tokenizer)
    verdicts = [
        gsm8k(text_of(tokenizer, c.tokens.tolist(), hidden), p.columns["answer"], c.finish)["reward"]
        for p, (c,) in zip(prompts, groups, strict=True)
    ]
    return sum(verdicts) / len(verdicts)


def learn(specification: dict[str, Any], port: Port) -> None:
    """Serve one round: train until the goal."""
    port.serve(lambda _: _learn(specification))


def _learn(specification: dict[str, Any]) -> Answer:
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "run"
        run = open_recipe(stack, recipe_of(specification, str(place)))
        session = run.session

        def greedy() -> float:
            limit = session.recipe.rollout.max_new_tokens
            return greedy_accuracy(session.engine, session.tokenizer, session.eval_prompts, limit)

        course = Course(specification["goal"], specification["every"], specification["limit"], greedy)
        while True:
            metrics = loop.train_step(run)
            loop.record(run, metrics)
            if course.step_done(int(metrics["samples"])):
                return course.answer()
