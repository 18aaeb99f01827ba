"""The whole state of a run in one place: what a checkpoint holds, and how a session takes it back, bit for bit."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import reduce
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rlhf_pg import config
from rlhf_pg.config import Recipe, ResolvedRecipe, SftRecipe
from rlhf_pg.data import collate
from rlhf_pg.models.adapter import has_adapter
from rlhf_pg.storage import random_state
from rlhf_pg.storage.digest import weights_digest
from rlhf_pg.training import prefetch
from rlhf_pg.training.learner import Learner
from rlhf_pg.training.setup import Session, digest_without_adapter
from rlhf_pg.types import Batch, Signals

# what a resumed run may not change: what is learned, and from what
SFT_KEYS = ("run.seed", "model", "sft", "optimizer", "data.train")
OF_CRITIC = tuple(f"critic.{key}" for key in ("backbone", "coefficient", "clip", "warmup"))
KEYS = ("run.seed", "model", "rewards", "algorithm", "kl", *OF_CRITIC, "data.train", "rollout.overlap")
Tensors = dict[str, dict[str, Tensor]]  # by group, by name


@dataclass
class Pending:
    """Rollouts that are not fully learned from: a stop in the middle of an update loses none of them."""

    batch: Batch
    signals: Signals
    metrics: dict[str, float]
    updates: list[dict[str, float]] = field(default_factory=list)  # one per optimizer step already taken on them
    critic_updates: list[dict[str, float]] = field(default_factory=list)  # the same of a critic of its own


@dataclass
class Progress:
    """Where the run is."""

    step: int = 0  # rollout steps finished
    samples: int = 0
    elapsed_s: float = 0.0  # over all sessions of the run
    before: dict[str, float] | None = None  # evaluation before step 1
    pending: Pending | None = None


@dataclass(frozen=True)
class Snapshot:
    """All a run must remember: what is the same on all ranks, and what this rank alone has."""

    common: tuple[Tensors, dict[str, Any]]  # tensors, JSON
    of_rank: tuple[Tensors, dict[str, Any]]


def snapshot(session: Session, progress: Progress) -> Snapshot:
    """Collect everything from which `restore` continues exactly."""
    learner = session.learner
    backend = learner.backend
    random, random_numbers = random_state.capture()
    tensors: Tensors = {"model": backend.weights_to_save(session.model)}
    rank_tensors: Tensors = {"random": random}
    rank_state: dict[str, Any] = {"random": random_numbers}
    state: dict[str, Any] = {
        "layout": backend.state_layout,
        "progress": {k: v for k, v in vars(progress).items() if k != "pending"},
        "updates": learner.updates,
        "kl_coefficient": learner.kl_coefficient,
        "sampler": session.sampler.state(),
        "reference": reference_identity(session),
    }
    # DeepSpeed has every rank step its own share; replicas have the same optimizer on all.
    moments, numbers = (rank_tensors, rank_state) if backend.deepspeed else (tensors, state)
    optimizer = backend.optimizer_state(learner.optimizer, _trained(session.model))
    moments["optimizer"], numbers["optimizer"] = optimizer
    if learner.critic:
        module = backend.unwrap(learner.critic.module)
        tensors["critic"] = backend.weights_to_save(module)
        state["critic"] = {"updates": learner.critic.updates, "base": critic_base(learner)}
        optimizer = backend.optimizer_state(learner.critic.optimizer, _trained(module))
        moments["critic_optimizer"], numbers["critic_optimizer"] = optimizer
    if progress.pending:
        rank_tensors["pending"] = _tensors("batch", progress.pending.batch) | _tensors(
            "signals", progress.pending.signals
        )
        state["pending_steps"] = _steps(session)
        state["pending"] = {k: getattr(progress.pending, k) for k in ("metrics", "updates", "critic_updates")}
    next_tensors, next_state = prefetch.snapshot(session)
    return Snapshot((tensors, state), (rank_tensors | next_tensors, rank_state | next_state))


def restore(session: Session, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> Progress:
    """Put a snapshot back into a freshly built session, and return where the run is.

    Raises ValueError when the reference model is not the one the run began with, or other processes hold other parts of
    the state than now.
    """
    _check_layout(session.learner.backend.state_layout, state.get("layout"), "pending" in state)
    identity = reference_identity(session)
    if identity != state["reference"]:
        raise ValueError(
            "the reference model is not the one this run started from: model.path has changed on disk or in the "
            f"recipe (weights {identity}, at the start {state['reference']}); restore it, or start a new run.dir"
        )
    learner, backend = session.learner, session.learner.backend
    backend.load_weights(learner.policy, session.model, tensors["model"])
    moments = tensors["optimizer"], state["optimizer"]
    backend.load_optimizer_state(learner.optimizer, _trained(session.model), *moments)
    learner.updates, learner.kl_coefficient = state["updates"], state["kl_coefficient"]
    if learner.critic:
        module = backend.unwrap(learner.critic.module)
        if critic_base(learner) != state["critic"]["base"]:
            raise ValueError("the critic's frozen model has changed on disk: restore it, or start a new run.dir")
        backend.load_weights(learner.critic.module, module, tensors["critic"])
        moments = tensors["critic_optimizer"], state["critic_optimizer"]
        backend.load_optimizer_state(learner.critic.optimizer, _trained(module), *moments)
        learner.critic.updates = state["critic"]["updates"]
    session.push_weights()
    session.sampler.load_state(state["sampler"])
    progress = Progress(**state["progress"])
    if "pending" in state:
        if state["pending_steps"] != _steps(session):
            was = ", ".join(f"{key}={value}" for key, value in state["pending_steps"].items())
            raise ValueError(f"the run was stopped inside a rollout step: finish that with {was}, then change them")
        saved = Batch(**_named("batch", tensors["pending"]))  # pyright: ignore[reportArgumentType]
        batch = collate.to(saved, backend.device)
        signals = Signals(**{k: v.to(batch.tokens.device) for k, v in _named("signals", tensors["pending"]).items()})
        progress.pending = Pending(batch, signals, **state["pending"])
    prefetch.restore(session, tensors, state, session.sampling(progress.step + 1))
    # Last: loading, and sampling anew what was started, draw random numbers.
    random_state.restore(tensors["random"], state["random"])
    return progress


def refuse_another_run(recipe: ResolvedRecipe | SftRecipe, saved: Path) -> None:
    """Raise ValueError when what is learned, or from what, is not as in the run that `saved` describes.

    Length, logging, checkpoints, evaluation, how the optimizer goes on and the export's dtype may change (this last one
    not in a cold start, which is left as it is once it is finished).
    """
    now = recipe.written if isinstance(recipe, ResolvedRecipe) else recipe
    before = config.load_saved(saved, type(now))
    keys = SFT_KEYS if isinstance(now, SftRecipe) else KEYS
    values = {key: (_value(before, key), _value(now, key)) for key in keys}
    changed = [f"{key} (was {old}, is {new})" for key, (old, new) in values.items() if old != new]
    if changed:
        raise ValueError(
            f"{saved.parent} holds another run; changed: {'; '.join(changed)}. Continue with the same recipe, or "
            "choose another run.dir (or remove this one)"
        )


def reference_identity(session: Session) -> str | None:
    """Return a digest of the reference's weights, or of those under an adapter; None when there is neither."""
    if session.reference is None and not has_adapter(session.model):
        return None
    if session.reference_digest is None:
        frozen = session.reference_policy.model if session.reference_policy else session.model
        session.reference_digest = digest_without_adapter(frozen)
    return session.reference_digest


def _check_layout(current: dict[str, Any], saved: dict[str, Any] | None, pending: bool) -> None:
    """Raise ValueError unless what was saved by one layout can go on in another: replicas can, between two steps."""
    saved = saved or {"kind": "replicas", "processes": 1}
    if saved == current or (saved["kind"] == current["kind"] == "replicas" and not pending):
        return
    why = (
        "was stopped inside a rollout step" if saved["kind"] == current["kind"] else "has its optimizer in other parts"
    )
    raise ValueError(
        f"the checkpoint was saved by {saved['processes']} process(es) with {saved['kind']} and {why}; this launch has "
        f"{current['processes']} with {current['kind']}: resume with the accelerate configuration it was saved "
        "with, or start in another run.dir with model.path=run.dir/model"
    )


def critic_base(learner: Learner) -> str | None:
    """Return a digest of the weights under the adapter of a critic model; None when all its weights are trained."""
    critic = learner.critic
    if critic is None or critic.shared:
        return None
    if critic.base is None:
        named = learner.backend.unwrap(critic.module).named_parameters()
        frozen = {name: p for name, p in named if not p.requires_grad}
        critic.base = weights_digest(frozen) if frozen else None
    return critic.base


def _value(recipe: Recipe | SftRecipe, key: str) -> Any:
    value = reduce(getattr, key.split("."), recipe)
    if key == "model" and isinstance(recipe, Recipe):
        return value.model_copy(update={"export_dtype": "auto"})
    return value


def _steps(session: Session) -> dict[str, int]:
    """Return into how many optimizer steps one rollout is divided."""
    learner = session.learner
    sections = {"update": learner.update} | ({"critic": learner.critic.options} if learner.critic else {})
    return {f"{name}.{key}": getattr(s, key) for name, s in sections.items() for key in ("epochs", "minibatches")}


def _trained(module: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def _tensors(prefix: str, values: Batch | Signals) -> dict[str, Tensor]:
    values_by_name = {f"{prefix}.{f.name}": getattr(values, f.name) for f in fields(values)}
    return {name: value.contiguous() for name, value in values_by_name.items() if value is not None}


def _named(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.split(".", 1)[1]: t for name, t in tensors.items() if name.startswith(prefix + ".")}
