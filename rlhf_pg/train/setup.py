"""From a recipe to the live parts of a run, cheap checks first: data and rewards come before any model is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_pg.algorithms.base import resolve as resolve_algorithm
from rlhf_pg.config import DataSource, Recipe
from rlhf_pg.data import prompts as prompt_data
from rlhf_pg.models.load import add_adapter, context_length, load_config, load_model, load_tokenizer, switch_off_dropout
from rlhf_pg.models.policy import Policy
from rlhf_pg.rewards import plugin
from rlhf_pg.rewards.score import Scorer
from rlhf_pg.rollout.engine import Engine
from rlhf_pg.rollout.engine import resolve as resolve_engine
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
        self.learner.backend.close()


def build(recipe: Recipe, *, learn: bool = True) -> Session:
    """Every part of a run. `learn` False leaves out the optimizer's reference (evaluation needs neither).

    Raises ValueError naming the key, file or column that is wrong.
    """
    rewards = [plugin.resolve(r.fn, r.weight, r.timeout_s) for r in recipe.rewards]
    trust = recipe.model.trust_remote_code
    tokenizer = load_tokenizer(recipe.model.tokenizer or recipe.model.path, trust_remote_code=trust)
    config = load_config(recipe.model.path, trust_remote_code=trust)
    sources: dict[Literal["train", "eval"], DataSource | None] = {"train": recipe.data.train, "eval": recipe.data.eval}
    made = {
        name: read_prompts(
            source,
            name,
            tokenizer,
            max_prompt_tokens=recipe.data.max_prompt_tokens,
            context=context_length(config),
            max_new_tokens=(name == "eval" and recipe.eval.max_new_tokens) or recipe.rollout.max_new_tokens,
        )
        for name, source in sources.items()
        if source
    }
    train = made["train"].prompts
    for reward in rewards:
        plugin.check(reward, set(train[0].columns))
    sampler = prompt_data.PromptSampler(train, recipe.rollout.prompts_per_step, recipe.run.seed)
    longest = max(len(prompt.tokens) for prompt in train)

    backend = Backend(recipe.model.dtype, recipe.log.trackers if learn else (), recipe.run.dir)
    model = load_model(
        recipe.model.path, attention=recipe.model.attention, seed=recipe.run.seed, trust_remote_code=trust
    )
    if recipe.model.lora:
        model = add_adapter(model, recipe.model.lora, seed=recipe.run.seed)
    switch_off_dropout(model)
    if recipe.model.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.to(backend.device)  # pyright: ignore[reportArgumentType]
    policy = Policy(model, recipe.rollout.temperature, recipe.update.share_prompts)
    frozen, frozen_policy = None, None
    if learn and recipe.kl.coefficient > 0:
        frozen, frozen_policy = reference(policy, recipe.update, backend.autocast)
    stops = prompt_data.eos_ids(tokenizer, model.config, model.generation_config)
    engine = resolve_engine(recipe.rollout.engine)(model, stops, slots=recipe.rollout.slots)
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
        eval_prompts=made["eval"].prompts if "eval" in made else [],
        sampler=sampler,
        notes=[_note(name, prompts) for name, prompts in made.items()],
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
        update=recipe.update.model_copy(update={"share_prompts": policy.share_prompts}),
        optimization=o,
        seed=recipe.run.seed,
        total_updates=recipe.run.steps * recipe.update.epochs * recipe.update.minibatches,
    )


def _note(name: str, made: prompt_data.Prompts) -> str:
    dropped = f", {made.dropped} left out as too long" if made.dropped else ""
    return f"data.{name}: {len(made.prompts)} prompts, template {made.template}{dropped}"


def read_prompts(
    source: DataSource,
    name: Literal["train", "eval"],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_prompt_tokens: int,
    context: int,
    max_new_tokens: int,
) -> prompt_data.Prompts:
    """The prompts of one data source of a recipe. Raises ValueError naming the file and line, column or option."""
    rows = prompt_data.load_rows(
        task=source.task,
        path=source.path,
        dataset=source.dataset,
        subset=source.subset,
        split=source.split or {"train": "train", "eval": "heldout"}[name],
        limit=source.limit,
        options=source.options,
    )
    return prompt_data.to_prompts(
        rows,
        tokenizer,
        split_name=name,
        prompt_column=source.prompt,
        answer_column=source.answer,
        template=source.template or "auto",
        max_prompt_tokens=max_prompt_tokens,
        context_length=context,
        max_new_tokens=max_new_tokens,
        task=source.task,
    )
