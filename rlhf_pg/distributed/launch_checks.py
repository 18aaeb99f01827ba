"""What some launches cannot do, said before a model is loaded."""

from __future__ import annotations

from rlhf_pg.config import Recipe
from rlhf_pg.config.unused_keys import algorithm_of
from rlhf_pg.distributed.backend import Backend


def refuse_with_deepspeed(recipe: Recipe, backend: Backend) -> None:
    """Raise ValueError for what needs whole gradients, or other steps than DeepSpeed takes."""
    algorithm = algorithm_of(recipe)
    if not backend.deepspeed or algorithm is None:
        return
    if algorithm.update == "trust_region":
        raise ValueError(
            f"{algorithm.name} makes its own step from whole gradients and weights, which DeepSpeed keeps in its own "
            "flat, sharded buffers; start it on one process or with DDP"
        )
    if recipe.update.max_kl is not None:
        raise ValueError(
            "update.max_kl leaves gradients behind that DeepSpeed would step with: leave it out, or use DDP"
        )
    if algorithm.needs_critic and recipe.critic.backbone == "policy":
        raise ValueError(
            "critic.backbone=policy gives one model two optimizers, and DeepSpeed knows one: use copy, or DDP"
        )
    if recipe.model.quantize:
        raise ValueError("model.quantize keeps weights that DeepSpeed cannot shard: leave it out, or use DDP")
    if recipe.model.lora and backend.sharded:
        raise ValueError("model.lora with ZeRO-3 cannot be merged for the export: use ZeRO-1, ZeRO-2 or DDP")


def refuse_in_several(recipe: Recipe, backend: Backend) -> None:
    """Raise ValueError for rollouts that one training process can have, and several cannot."""
    rollout = recipe.rollout
    if backend.ranks.size == 1:
        return
    if rollout.overlap:
        raise ValueError("rollout.overlap samples beside one process that trains: leave it out, or start one process")
    if rollout.server is not None:
        raise ValueError("rollout.server: a server serves one process that trains; leave it out, or start one process")
    if rollout.engine == "vllm":
        raise ValueError(
            "rollout.engine=vllm: vLLM's process group stands in the way of several training processes'; use native, "
            "or start one process"
        )
