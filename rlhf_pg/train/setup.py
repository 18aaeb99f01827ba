"""From a recipe to the live parts of a run, cheap checks first: data and rewards are read before any model is loaded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_pg.algorithms.base import resolve as resolve_algorithm
from rlhf_pg.config import DataSource, Recipe
from rlhf_pg.data import prompts as prompt_data
from rlhf_pg.models.load import add_adapter, context_length, load_config, load_model, load_tokenizer
from rlhf_pg.models.policy import Policy
from rlhf_pg.rewards import plugin
from rlhf_pg.rewards.score import Scorer
from rlhf_pg.rollout.engine import Engine
from rlhf_pg.rollout.native import NativeEngine
from rlhf_pg.train.backend import Backend
from rlhf_pg.train.gradient_step import Learner, Objective
from rlhf_pg.train.plan import Plan
from rlhf_pg.train.plan import plan as make_plan
from rlhf_pg.train.signals import Reference, reference
from rlhf_pg.types import Prompt


@dataclass
class Session:
    """The live parts of a run."""

    recipe: Recipe
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel  # unwrapped: what the engine samples from and what is saved
    learner: Learner
    reference: Reference | None
    reference_policy: Policy | None
    engine: Engine
    scorer: Scorer
    train_prompts: list[Prompt]
    eval_prompts: list[Prompt]
    sampler: prompt_data.PromptSampler
    notes: list[str]  # what a person should know before step 1: dropped prompts, the template in use
    plan: Plan
    reference_identity: str | None = None  # digest of its weights, taken once

    def close(self) -> None:
        self.engine.close()
        self.scorer.close()


def build(recipe: Recipe, *, learn: bool = True) -> Session:
    """Every part of a run. `learn` False leaves out the optimizer's reference (evaluation needs neither).

    Raises ValueError naming the key, file or column that is wrong.
    """
    rewards = [plugin.resolve(r.fn, r.weight, r.timeout_s) for r in recipe.rewards]
    where = dict(trust_remote_code=recipe.model.trust_remote_code)
    tokenizer = load_tokenizer(recipe.model.tokenizer or recipe.model.path, **where)
    config = load_config(recipe.model.path, **where)
    context = context_length(config)
    notes: list[str] = []
    train = _prompts(recipe, recipe.data.train, "train", tokenizer, context, notes)
    held_out = _prompts(recipe, recipe.data.eval, "eval", tokenizer, context, notes) if recipe.data.eval else []
    for reward in rewards:
        plugin.check(reward, set(train[0].columns))
    sampler = prompt_data.PromptSampler(train, recipe.rollout.prompts_per_step, recipe.run.seed)
    longest = max(len(prompt.tokens) for prompt in train)

    backend = Backend(recipe.model.dtype, recipe.log.trackers, recipe.run.dir)
    model = load_model(recipe.model.path, attention=recipe.model.attention, seed=recipe.run.seed, **where)
    if recipe.model.lora:
        model = add_adapter(model, recipe.model.lora)
    model.to(backend.device)  # pyright: ignore[reportArgumentType]
    policy = Policy(model, recipe.rollout.temperature, recipe.update.share_prompts)
    frozen, frozen_policy = None, None
    if learn and recipe.kl.coefficient > 0:
        frozen, frozen_policy = reference(policy, recipe.update.tokens_per_microbatch, backend.autocast)
    engine = NativeEngine(
        model, prompt_data.eos_ids(tokenizer, model.config, model.generation_config), slots=recipe.rollout.slots
    )
    return Session(
        recipe=recipe,
        tokenizer=tokenizer,
        model=model,
        learner=_learner(recipe, policy, backend),
        reference=frozen,
        reference_policy=frozen_policy,
        engine=engine,
        scorer=Scorer(rewards),
        train_prompts=train,
        eval_prompts=held_out,
        sampler=sampler,
        notes=notes,
        plan=make_plan(recipe, config, longest_prompt=longest),
    )


def _learner(recipe: Recipe, policy: Policy, backend: Backend) -> Learner:
    algorithm = resolve_algorithm(recipe.algorithm.name)
    options = algorithm.options(**recipe.algorithm.options)
    trainable = [p for p in policy.parameters() if p.requires_grad]
    o = recipe.optimizer
    optimizer = torch.optim.AdamW(trainable, lr=o.lr, betas=o.betas, eps=o.eps, weight_decay=o.weight_decay)
    prepared, optimizer = backend.prepare(policy, optimizer)
    return Learner(
        policy=prepared,
        optimizer=optimizer,
        backend=backend,
        objective=Objective(algorithm, options, recipe.kl, recipe.rollout.max_new_tokens),
        update=recipe.update,
        optimization=o,
        seed=recipe.run.seed,
        total_updates=recipe.run.steps * recipe.update.epochs * recipe.update.minibatches,
    )


def _prompts(
    recipe: Recipe, source: DataSource, name: str, tokenizer: PreTrainedTokenizerBase, context: int, notes: list[str]
) -> list[Prompt]:
    """The prompts of one data source; what was dropped and which template was used goes into `notes`."""
    rows = prompt_data.load_rows(
        task=source.task,
        path=source.path,
        dataset=source.dataset,
        subset=source.subset,
        split=source.split or ("heldout" if name == "eval" else "train"),
        limit=source.limit,
        options=source.options,
    )
    made = prompt_data.to_prompts(
        rows,
        tokenizer,
        split_name=name,
        prompt_column=source.prompt,
        answer_column=source.answer,
        template=source.template or "auto",
        max_prompt_tokens=recipe.data.max_prompt_tokens,
        context_length=context,
        max_new_tokens=recipe.rollout.max_new_tokens,
        task=source.task,
    )
    notes.append(f"data.{name}: {len(made.prompts)} prompts, template {made.template}, {made.dropped} too long dropped")
    return made.prompts
