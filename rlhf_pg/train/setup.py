"""From a recipe to the live parts of a run, cheap checks first: data and rewards come before any model is loaded."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_pg.algorithms.base import resolve as resolve_algorithm
from rlhf_pg.config import Optimizer, Recipe
from rlhf_pg.data import prompts as prompt_data
from rlhf_pg.distributed.backend import Backend
from rlhf_pg.distributed.launch_checks import refuse_in_several, refuse_with_deepspeed
from rlhf_pg.estimate.estimate import Plan, settled
from rlhf_pg.estimate.estimate import plan as make_plan
from rlhf_pg.models.adapter import add_adapter
from rlhf_pg.models.critic import Critic, ValueHead
from rlhf_pg.models.load import context_length, load_config, load_model, load_tokenizer, switch_off_dropout
from rlhf_pg.models.policy import Policy
from rlhf_pg.rewards import plugin
from rlhf_pg.rewards.score import Scorer
from rlhf_pg.rollout.engine import Engine
from rlhf_pg.rollout.engine import build as build_engine
from rlhf_pg.rollout.launch_local import local_engine
from rlhf_pg.rollout.launch_server import served_engine
from rlhf_pg.rollout.weights import overwrite
from rlhf_pg.storage.state import weights_digest
from rlhf_pg.train.learner import CriticLearner, Learner, Objective
from rlhf_pg.train.precompute import Reference, frozen_copy, reference
from rlhf_pg.train.prompts import longest_request, note, prompts_of
from rlhf_pg.types import Prompt, Sampling


@dataclass
class Session:
    """The live parts of a run."""

    recipe: Recipe
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel  # unwrapped: what is trained and saved
    sampled: PreTrainedModel  # what the engine samples from: `model`, or a copy where that is sharded
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

    def sampling(self, step: int) -> Sampling:
        """How the rollouts of a step are sampled."""
        rollout = self.recipe.rollout
        return Sampling(
            samples=rollout.samples_per_prompt,
            max_new_tokens=rollout.max_new_tokens,
            temperature=rollout.temperature,
            seed=self.recipe.run.seed,
            step=step,
        )

    def push_weights(self) -> None:
        """Make the engine sample from the weights as they are now; all ranks must call this."""
        if self.sampled is not self.model:
            for named in self.learner.backend.whole(self.model):
                overwrite(self.sampled, [named])
        self.engine.load_weights((), version=self.learner.updates)

    def close(self) -> None:
        self.engine.close()
        self.scorer.close()
        self.learner.backend.close()


def build(recipe: Recipe, *, learn: bool = True, backend: Backend | None = None) -> Session:
    """Every part of a run. `learn` False leaves out the critic and the reference, which evaluation does not need.
    `backend`: the process group, if it has been joined.

    Raises ValueError naming the key, file or column that is wrong.
    """
    rewards = [plugin.resolve(r.fn, r.weight, r.timeout_s) for r in recipe.rewards]
    trust = recipe.model.trust_remote_code
    tokenizer = load_tokenizer(recipe.model.tokenizer or recipe.model.path, trust_remote_code=trust)
    config = load_config(recipe.model.path, trust_remote_code=trust)
    made = prompts_of(recipe, tokenizer, context_length(config))
    train = made["train"].prompts
    for reward in rewards:
        plugin.check(reward, set(train[0].columns))
    sampler = prompt_data.PromptSampler(train, recipe.rollout.prompts_per_step, recipe.run.seed)
    longest = max(len(prompt.tokens) for prompt in train)
    recipe = settled(recipe, config, longest)

    backend = backend or join(recipe, trackers=learn)
    refuse_in_several(recipe, backend)
    if learn:
        refuse_with_deepspeed(recipe, backend)
    model = policy_model(recipe, recipe.model.path, backend)
    with_reference = learn and recipe.kl.coefficient > 0
    sampled, kept, identity = model, None, None
    if backend.sharded:  # whatever needs whole weights takes them now
        sampled = copy.deepcopy(model)
        if with_reference:
            kept = frozen_copy(Policy(model, recipe.rollout.temperature, recipe.update.share_prompts))
            identity = identity_of(kept.model)
    learner, policy = _learner(recipe, model, tokenizer, backend, learn=learn)
    frozen, frozen_policy = None, None
    if with_reference:
        frozen, frozen_policy = reference(policy, recipe.update, backend.autocast, kept, backend.freeze)
    stops = prompt_data.eos_ids(tokenizer, model.config, model.generation_config)
    engine = make_engine(recipe, sampled, stops, longest_request(recipe, made), learn=learn)
    learner.rollout_is_old = getattr(engine, "samples_live_weights", False) and recipe.model.dtype == "float32"
    return Session(
        recipe=recipe,
        tokenizer=tokenizer,
        model=model,
        sampled=sampled,
        learner=learner,
        reference=frozen,
        reference_policy=frozen_policy,
        engine=engine,
        scorer=Scorer(rewards),
        train_prompts=train,
        eval_prompts=made["eval"].prompts if "eval" in made else [],
        sampler=sampler,
        notes=[note(name, prompts) for name, prompts in made.items()],
        plan=make_plan(recipe, config, longest_prompt=longest),
        reference_identity=identity,
    )


def join(recipe: Recipe, *, trackers: bool = True) -> Backend:
    """The device and the processes of this launch."""
    given = recipe.model.dtype, recipe.log.trackers if trackers else (), recipe.run.dir, recipe.run.deadline_s
    return Backend(*given)


def identity_of(model: PreTrainedModel) -> str:
    """A digest of a model's weights, an adapter's left out."""
    return weights_digest((n, p) for n, p in model.named_parameters() if "lora_" not in n)


def make_engine(
    recipe: Recipe, model: PreTrainedModel, stops: Sequence[int], context: int, *, learn: bool = True
) -> Engine:
    """In this process, in one that samples a step ahead, or in that of `rlhf-pg serve`."""
    rollout, trust = recipe.rollout, recipe.model.trust_remote_code
    facts = {"dtype": recipe.model.dtype, "context": context, "trust_remote_code": trust}
    if rollout.server is not None:
        return served_engine(model, stops, rollout.server, dtype=recipe.model.dtype, context=context)
    if learn and rollout.overlap:
        return local_engine(model, stops, rollout.slots, engine=rollout.engine, options=rollout.options, facts=facts)
    return build_engine(rollout.engine, model, stops, rollout.slots, rollout.options, **facts)


def policy_model(recipe: Recipe, path: str, backend: Backend) -> PreTrainedModel:
    """A model as the recipe's `model` section wants it: attention, adapter, dropout, checkpointing, device."""
    section = recipe.model
    model = load_model(
        path,
        attention=section.attention,
        seed=recipe.run.seed,
        trust_remote_code=section.trust_remote_code,
        quantize=section.quantize,
        arithmetic=getattr(torch, section.dtype),
    )
    if section.lora:
        model = add_adapter(model, section.lora, seed=recipe.run.seed)
    switch_off_dropout(model)
    if section.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model if section.quantize else model.to(backend.device)  # pyright: ignore[reportArgumentType]


def _learner(
    recipe: Recipe, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, backend: Backend, *, learn: bool
) -> tuple[Learner, Policy]:
    """The policy with its optimizer, and the critic with its own if the algorithm has one."""
    algorithm = resolve_algorithm(recipe.algorithm.name)
    options = algorithm.options(**recipe.algorithm.options)
    algorithm = algorithm.settled(options)
    critic, head = None, None
    if learn and algorithm.needs_critic:
        critic, head = _critic(recipe, model, tokenizer, backend)
    policy = Policy(model, recipe.rollout.temperature, recipe.update.share_prompts, head)
    trainable = [p for p in model.parameters() if p.requires_grad]
    prepared, optimizer = backend.prepare(policy, adamw(trainable, recipe.optimizer), recipe.optimizer.grad_clip)
    learner = Learner(
        policy=prepared,
        optimizer=optimizer,
        backend=backend,
        objective=Objective(algorithm, options, recipe.kl, recipe.rollout.max_new_tokens),
        update=recipe.update,
        optimization=recipe.optimizer,
        seed=recipe.run.seed,
        total_updates=(recipe.run.steps - recipe.critic.warmup) * recipe.update.epochs * recipe.update.minibatches,
        critic=critic,
    )
    return learner, policy


def _critic(
    recipe: Recipe, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, backend: Backend
) -> tuple[CriticLearner, ValueHead | None]:
    """The critic, and its head if that sits on the policy. Raises ValueError for a backbone with other tokens."""
    section = recipe.critic
    if section.backbone == "policy":
        head = ValueHead(model.config.get_text_config().hidden_size, section.coefficient).to(backend.device)
        optimizer = backend.prepare_optimizer(adamw(list(head.parameters()), section.optimizer))
        total = recipe.run.steps * recipe.update.epochs * recipe.update.minibatches
        return CriticLearner(head, optimizer, section, total), head
    copied = section.backbone == "copy"
    if not copied:
        _same_tokens(recipe, tokenizer)
    other = policy_model(recipe, recipe.model.path if copied else section.backbone, backend)
    own = Critic(other.get_decoder(), recipe.update.share_prompts).to(backend.device)
    trainable = [p for p in own.parameters() if p.requires_grad]
    prepared, optimizer = backend.prepare(own, adamw(trainable, section.optimizer), section.optimizer.grad_clip)
    total = recipe.run.steps * section.epochs * section.minibatches
    return CriticLearner(prepared, optimizer, section, total), None


def _same_tokens(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError unless the critic's model knows the policy's tokens by the same numbers."""
    path, trust = recipe.critic.backbone, recipe.model.trust_remote_code
    rows = load_config(path, trust_remote_code=trust).get_text_config().vocab_size
    if load_tokenizer(path, trust_remote_code=trust).get_vocab() != tokenizer.get_vocab() or rows < len(tokenizer):
        raise ValueError(
            f"critic.backbone: {path} has other tokens than the policy ({rows:,} rows of embeddings, the policy's "
            f"tokenizer has {len(tokenizer):,} tokens): the critic reads those, so both need one tokenizer"
        )


def adamw(parameters: list[torch.nn.Parameter], settings: Optimizer) -> torch.optim.AdamW:
    """The optimizer of one `optimizer` section."""
    return torch.optim.AdamW(
        parameters, lr=settings.lr, betas=settings.betas, eps=settings.eps, weight_decay=settings.weight_decay
    )
