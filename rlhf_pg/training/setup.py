"""Build the live parts of a run from its recipe, cheap ones first: data and rewards fail before any model is loaded."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_pg.config import Optimizer, ResolvedRecipe
from rlhf_pg.data import prompts as prompt_data
from rlhf_pg.data.stops import check_tokens, check_vocabulary, eos_ids
from rlhf_pg.distributed.backend import Backend
from rlhf_pg.estimate.microbatch import microbatch_positions, with_microbatch
from rlhf_pg.estimate.model_size import UnknownShape
from rlhf_pg.estimate.run_estimate import RunEstimate, estimate_run
from rlhf_pg.estimate.share import rows_at_once
from rlhf_pg.models import gguf
from rlhf_pg.models.adapter import add_adapter
from rlhf_pg.models.context import context_length
from rlhf_pg.models.critic import Critic, ValueHead
from rlhf_pg.models.load import load_config, load_model, load_tokenizer, switch_off_dropout
from rlhf_pg.models.packed_attention import base_attention
from rlhf_pg.models.policy import Policy
from rlhf_pg.rewards import plugin
from rlhf_pg.rewards.arguments import check_rows, replaced_columns
from rlhf_pg.rewards.score import Scorer
from rlhf_pg.rollout.engine import Engine
from rlhf_pg.rollout.engine import build as build_engine
from rlhf_pg.rollout.launch_local import local_engine
from rlhf_pg.rollout.launch_server import served_engine
from rlhf_pg.rollout.weights import overwrite
from rlhf_pg.storage.digest import weights_digest
from rlhf_pg.training import hub
from rlhf_pg.training.learner import CriticLearner, Learner, Objective
from rlhf_pg.training.precompute import Reference, frozen_copy, reference
from rlhf_pg.training.prompts import longest_request, note, prompts_of
from rlhf_pg.types import Prompt, Sampling


@dataclass
class Session:
    """The live parts of a run."""

    recipe: ResolvedRecipe
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel  # unwrapped: what is trained and saved
    engine_model: PreTrainedModel  # what the engine samples from: `model`, or a copy where that is sharded
    learner: Learner
    reference: Reference | None
    reference_policy: Policy | None
    engine: Engine
    scorer: Scorer
    train_prompts: list[Prompt]
    eval_prompts: list[Prompt]
    sampler: prompt_data.PromptSampler
    notes: list[str]  # what a person should know before step 1: dropped prompts, the template in use
    estimate: RunEstimate | None  # None: the model's shape is not one that is counted; a note says why
    reference_digest: str | None = None  # of its weights, computed once
    rounding: float | None = None  # the mean error of a log-prob in the run's arithmetic, computed once

    def sampling(self, step: int) -> Sampling:
        """Return how the rollouts of a step are sampled."""
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
        # First the engine's model, where that is a copy: `load_weights` may read from it.
        if self.engine_model is not self.model:
            for named_weight in self.learner.backend.gathered_weights(self.model):
                overwrite(self.engine_model, [named_weight])
        self.engine.load_weights((), version=self.learner.updates)

    def close(self) -> None:
        """End the engine, the reward workers and the watchdog."""
        self.engine.close()
        self.scorer.close()
        self.learner.backend.close()


def build(recipe: ResolvedRecipe, *, learn: bool = True, backend: Backend | None = None) -> Session:
    """Build every part of a run. `learn` False leaves out the critic and the reference, which evaluation does not need.

    `backend`: the process group, if it has been joined. Raises ValueError naming the key, file or column that is wrong.
    """
    rewards = [
        plugin.resolve(r.fn, r.weight, r.timeout_s, r.memory_mb, f"rewards.{i}.{{}}", args=r.args, name=r.name)
        for i, r in enumerate(recipe.rewards)
    ]
    plugin.require_distinct_names(rewards)
    plugin.require_free_names(rewards)
    hub.require(recipe)
    trust = recipe.model.trust_remote_code
    tokenizer = load_tokenizer(recipe.model.tokenizer or recipe.model.path, trust_remote_code=trust)
    model_config = load_config(recipe.model.path, trust_remote_code=trust)
    vocabulary = model_config.get_text_config().vocab_size
    check_vocabulary(tokenizer, vocabulary)
    prompts = prompts_of(recipe, tokenizer, context_length(model_config))
    train, dropped = prompts["train"].prompts, prompts["train"].dropped_note
    sampler = prompt_data.PromptSampler(train, recipe.rollout.prompts_per_step, recipe.run.seed, dropped)
    check_rows(rewards, [(f"prompt {p.id}", p.columns) for source in prompts.values() for p in source.prompts])
    for prompt in (prompt for source in prompts.values() for prompt in source.prompts):
        check_tokens(prompt.tokens, f"prompt {prompt.id}", tokenizer, vocabulary)
    longest_prompt = max(len(prompt.tokens) for prompt in train)
    recipe = with_microbatch(recipe, microbatch_positions(recipe, model_config, longest_prompt))

    backend = backend or join(recipe)
    model = policy_model(recipe, recipe.model.path, backend)
    # Copies are made before `backend.prepare`, which under ZeRO-3 leaves no process with all weights.
    engine_model = copy.deepcopy(model) if backend.sharded else model
    with_reference = learn and recipe.passes.reference
    reference_copy, digest = None, None
    if with_reference and backend.sharded:
        reference_copy = frozen_copy(Policy(model, recipe.rollout.temperature, recipe.update.share_prompts))
        digest = digest_without_adapter(reference_copy.model)
    learner, policy = _learner(recipe, model, tokenizer, backend, learn=learn)
    frozen, frozen_policy = None, None
    if with_reference:
        frozen, frozen_policy = reference(
            policy, recipe.update, backend.autocast, reference_copy, backend.prepare_frozen
        )
    stops, stop_notes = eos_ids(tokenizer, model.config, model.generation_config, vocabulary=vocabulary)
    held_out = prompts["eval"].prompts if "eval" in prompts else []
    longest_problem = max((len(prompt.tokens) for prompt in held_out), default=None)
    ranks = backend.ranks.size
    slots = rows_at_once(recipe, ceil(recipe.rollout.prompts_per_step / ranks), ceil(len(held_out) / ranks))
    engine = make_engine(recipe, engine_model, stops, slots, longest_request(recipe, prompts), learn=learn)
    notes = [*model_notes(recipe.model.path), *(note(name, source) for name, source in prompts.items()), *stop_notes]
    notes += replaced_columns(rewards, {name for prompt in train for name in prompt.columns})
    notes += _slower_ways(recipe, model, policy, engine)
    estimate = None
    try:
        estimate = estimate_run(recipe, model_config, longest_prompt, len(held_out), longest_problem)
    except UnknownShape as error:
        notes.append(f"no estimate of memory: {error}")
    return Session(
        recipe=recipe,
        tokenizer=tokenizer,
        model=model,
        engine_model=engine_model,
        learner=learner,
        reference=frozen,
        reference_policy=frozen_policy,
        engine=engine,
        scorer=Scorer(rewards),
        train_prompts=train,
        eval_prompts=held_out,
        sampler=sampler,
        notes=notes,
        estimate=estimate,
        reference_digest=digest,
    )


def model_notes(path: str) -> list[str]:
    """Return what to say of the model before step 1: where a GGUF file comes from, and its licence."""
    return [gguf.description(path)] if gguf.is_gguf(path) else []


def _slower_ways(recipe: ResolvedRecipe, model: PreTrainedModel, policy: Policy, engine: Engine) -> Iterator[str]:
    """Say which of the faster ways to compute the model are not used, since they would not give its own numbers."""
    attention = base_attention(model.config.get_text_config())
    if attention != recipe.model.attention:
        yield f"attention is {attention}: {recipe.model.attention} leaves out part of what this model's attention does"
    if recipe.update.share_prompts and not policy.share_prompts:
        yield "prompts are forwarded with every row: this model's attention or positions do not allow sharing them"
    if uncached := getattr(engine, "uncached", ""):
        yield f"rollouts are slow: every row is forwarded whole for each token ({uncached})"


def join(recipe: ResolvedRecipe) -> Backend:
    """Join the processes of this launch, each on its device."""
    return Backend(recipe.model.dtype, recipe.run.timeout_s)


def digest_without_adapter(model: PreTrainedModel) -> str:
    """Return a digest of a model's weights, an adapter's left out."""
    return weights_digest((n, p) for n, p in model.named_parameters() if "lora_" not in n)


def make_engine(
    recipe: ResolvedRecipe,
    model: PreTrainedModel,
    eos_ids: Sequence[int],
    slots: int,
    context: int,
    *,
    learn: bool = True,
) -> Engine:
    """Build the engine: in this process, in a second one that samples a step ahead, or in that of `rlhf-pg serve`.

    slots: rows sampled at once, so many as a step or an evaluation has; context: tokens of the longest request.
    """
    rollout = recipe.rollout
    if rollout.server is not None:
        return served_engine(model, eos_ids, rollout.server, dtype=recipe.model.dtype, context=context)
    launch = local_engine if learn and rollout.overlap else build_engine
    return launch(rollout.engine, model, eos_ids, slots, rollout.options, **engine_facts(recipe, context))


def engine_facts(recipe: ResolvedRecipe, context: int) -> dict[str, Any]:
    """Return what an engine's constructor may name besides the recipe's `rollout.options`."""
    trust = recipe.model.trust_remote_code
    return {"dtype": recipe.model.dtype, "context": context, "trust_remote_code": trust}


def policy_model(recipe: ResolvedRecipe, path: str, backend: Backend, *, head: bool = True) -> PreTrainedModel:
    """Load a model as the recipe's `model` section has it: attention, adapter, dropout, checkpointing, device.

    `head` False: the files need not have one, as those of a reward model.
    """
    section = recipe.model
    model = load_model(
        path,
        attention=section.attention,
        seed=recipe.run.seed,
        trust_remote_code=section.trust_remote_code,
        quantize=section.quantize,
        arithmetic=getattr(torch, section.dtype),
        head=head,
    )
    if section.lora:
        model = add_adapter(model, section.lora, seed=recipe.run.seed)
    switch_off_dropout(model)
    if section.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model if section.quantize else model.to(backend.device)  # pyright: ignore[reportArgumentType]


def _learner(
    recipe: ResolvedRecipe, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, backend: Backend, *, learn: bool
) -> tuple[Learner, Policy]:
    """Return the policy with its optimizer, and the critic with its own if the algorithm has one."""
    critic, value_head = None, None
    if learn and recipe.algorithm.needs_critic:
        critic, value_head = _critic(recipe, model, tokenizer, backend)
    policy = Policy(model, recipe.rollout.temperature, recipe.update.share_prompts, value_head)
    trainable = [p for p in model.parameters() if p.requires_grad]
    prepared, optimizer = backend.prepare(policy, adamw(trainable, recipe.optimizer), recipe.optimizer.grad_clip)
    learner = Learner(
        policy=prepared,
        optimizer=optimizer,
        backend=backend,
        objective=Objective(recipe.algorithm, recipe.kl, recipe.rollout.max_new_tokens),
        update=recipe.update,
        passes=recipe.passes,
        optimization=recipe.optimizer,
        seed=recipe.run.seed,
        total_updates=recipe.optimizer_steps,
        critic=critic,
    )
    return learner, policy


def _critic(
    recipe: ResolvedRecipe, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, backend: Backend
) -> tuple[CriticLearner, ValueHead | None]:
    """Return the critic, and its head if that sits on the policy.

    Raises ValueError for a backbone with another tokenizer.
    """
    section = recipe.critic
    if section.on_policy_model:
        head = ValueHead(model.config.get_text_config().hidden_size, section.coefficient).to(backend.device)
        optimizer = backend.prepare_optimizer(adamw(list(head.parameters()), section.optimizer))
        total = recipe.run.steps * recipe.update.epochs * recipe.update.minibatches
        return CriticLearner(head, optimizer, section, total), head
    if section.backbone != "copy":
        _check_same_tokens(recipe, tokenizer)
    path = recipe.model.path if section.backbone == "copy" else section.backbone
    backbone = policy_model(recipe, path, backend, head=False)
    critic = Critic(backbone.get_decoder(), recipe.update.share_prompts).to(backend.device)
    trainable = [p for p in critic.parameters() if p.requires_grad]
    prepared, optimizer = backend.prepare(critic, adamw(trainable, section.optimizer), section.optimizer.grad_clip)
    total = recipe.run.steps * section.epochs * section.minibatches
    return CriticLearner(prepared, optimizer, section, total), None


def _check_same_tokens(recipe: ResolvedRecipe, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError unless the critic's model knows the policy's tokens by the same numbers."""
    path, trust = recipe.critic.backbone, recipe.model.trust_remote_code
    rows = load_config(path, trust_remote_code=trust).get_text_config().vocab_size
    if load_tokenizer(path, trust_remote_code=trust).get_vocab() != tokenizer.get_vocab() or rows < len(tokenizer):
        raise ValueError(
            f"critic.backbone: {path} has other tokens than the policy ({rows:,} rows of embeddings, the policy's "
            f"tokenizer has {len(tokenizer):,} tokens): the critic reads those, so both need one tokenizer"
        )


def adamw(parameters: list[torch.nn.Parameter], settings: Optimizer) -> torch.optim.AdamW:
    """Make the optimizer of one `optimizer` section."""
    return torch.optim.AdamW(
        parameters, lr=settings.lr, betas=settings.betas, eps=settings.eps, weight_decay=settings.weight_decay
    )
