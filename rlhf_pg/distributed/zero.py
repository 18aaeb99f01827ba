"""DeepSpeed's ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054): the only file that imports DeepSpeed, inside functions.

    stage 1   each rank has a part of the optimizer's state
    stage 2   ... and of the gradients
    stage 3   ... and of the weights: they are gathered layer by layer in every forward and backward

From stage 2 on a backward is a collective, in stage 3 a forward too: every rank must make as many as any other. A rank
that has fewer micro-batches makes idle ones, of two tokens and loss 0 (`idle_pass`). Weights, gradients and optimizer
state are float32 at every stage; `model.dtype` chooses the arithmetic by autocast, as without DeepSpeed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_pg.display import quiet

UNSHARDED_BELOW = 10_000  # elements: stage 3 does not shard smaller parameters (norms, biases)


class Zero:
    """How modules are sharded. `config`: the DeepSpeed configuration of the launch; `size`: the number of ranks."""

    def __init__(self, config: Mapping[str, Any], size: int, autocast: Callable[[], AbstractContextManager]):
        self.config, self.size, self.autocast = config, size, autocast
        self.stage = int(config.get("zero_optimization", {}).get("stage", 0))
        if self.stage not in (1, 2, 3):
            raise ValueError(f"zero_stage {self.stage} of the accelerate configuration: use 1, 2 or 3, or MULTI_GPU")

    def prepare(self, module: nn.Module, optimizer: torch.optim.Optimizer, clip: float) -> tuple[Any, ZeroOptimizer]:
        """Return a module to be trained, in DeepSpeed's engine, and its optimizer. `clip`: largest gradient norm."""
        engine = self._engine(module, {"gradient_clipping": clip}, optimizer=optimizer)
        if engine.zero_optimization_stage() != self.stage:
            raise RuntimeError(f"DeepSpeed runs stage {engine.zero_optimization_stage()}, not {self.stage}")
        return engine, ZeroOptimizer(engine)

    def prepare_frozen(self, module: nn.Module) -> Any:
        """Return a module that is never trained, in DeepSpeed's engine, its weights sharded (stage 3)."""
        return self._engine(module, {})

    def described(self, engine: Any) -> str:
        """Return what an engine says of itself, as in "DeepSpeed ZeRO-3, optimizer and weights offloaded"."""
        parts = {"optimizer": engine.zero_offload_optimizer(), "weights": engine.zero_offload_param()}
        offloaded = " and ".join(name for name, to in parts.items() if to is not None and to.device != "none")
        return f"DeepSpeed ZeRO-{engine.zero_optimization_stage()}" + (f", {offloaded} offloaded" if offloaded else "")

    def _engine(self, module: nn.Module, settings: Mapping[str, Any], **trained: Any) -> Any:
        import deepspeed

        _stack_outputs(module, self.autocast)
        parameters: Any = [p for p in module.parameters() if p.requires_grad] if trained else None
        config = {**_configuration(self.config, self.size), **settings}
        with quiet.prints_logged():
            engine, *_ = deepspeed.initialize(model=module, model_parameters=parameters, config=config, **trained)
        head = _outer_head(module)
        if self.stage == 3 and head is not None:
            deepspeed.zero.register_external_parameter(module, head.weight)
        _unstack_outputs(engine)
        return engine

    def gathered_weights(self, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, tensor) of all that a state dict has, tied ones once, gathered one at a time; all ranks must
        iterate."""
        import deepspeed

        for name, parameter in module.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter], enabled=self.stage == 3):
                yield name, parameter.detach()
        yield from saved_buffers(module)

    def load(self, engine: Any, tensors: Mapping[str, Tensor], module: nn.Module) -> None:
        """Give `module`, the engine's or a part of it, weights by name, as `gathered_weights` yields them.

        Frozen parameters that `tensors` lacks stay as they are: they come from model.path.
        """
        import deepspeed

        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if not parameter.requires_grad and name not in tensors:
                    continue
                with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=self.stage == 3):
                    parameter.copy_(tensors[name])
            for name, buffer in saved_buffers(module):
                if name in tensors:
                    buffer.copy_(tensors[name])
        engine.optimizer.refresh_fp32_params()


class ZeroOptimizer:
    """An engine's optimizer. DeepSpeed clips and steps in one call, which `clip` makes; `step` then does nothing."""

    def __init__(self, engine: Any):
        self.engine = engine

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.engine.optimizer.param_groups

    def clip(self) -> float:
        """Clip the gradients to the norm given to `prepare` and take the step, unless their norm is not finite.

        Returns the norm before clipping, infinity if no step was taken.
        """
        self.engine.step()
        return float("inf") if self.engine.optimizer.overflow else float(self.engine.get_global_grad_norm())

    def step(self) -> None: ...

    def zero_grad(self, set_to_none: bool = True) -> None: ...

    @property
    def shards(self) -> Sequence[Tensor]:
        """This rank's parts of all trained weights: flat, float32, one per parameter group."""
        inner = self.engine.optimizer
        stage_3 = self.engine.zero_optimization_stage() == 3
        return inner.fp32_partitioned_groups_flat if stage_3 else inner.single_partition_of_fp32_groups

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return AdamW's state of this rank's shards: tensors "exp_avg/<shard>", and the length of each shard."""
        state_of = self.engine.optimizer.optimizer.state
        tensors = {
            f"{key}/{i}": value for i, shard in enumerate(self.shards) for key, value in state_of.get(shard, {}).items()
        }
        return tensors, {"shards": [shard.numel() for shard in self.shards]}

    def load_state(self, tensors: Mapping[str, Tensor], saved: Mapping[str, Any]) -> None:
        """Undo `state`. Raises ValueError for shards of another length."""
        if saved["shards"] != [shard.numel() for shard in self.shards]:
            raise ValueError("the optimizer's shards have other sizes than those saved: the model is another one")
        state_of = self.engine.optimizer.optimizer.state
        for i, shard in enumerate(self.shards):
            state = {path.split("/")[0]: t for path, t in tensors.items() if path.split("/")[1] == str(i)}
            if state:
                state_of[shard] = {k: t.to("cpu" if k == "step" else shard.device, copy=True) for k, t in state.items()}


def idle_pass(module: nn.Module, device: torch.device) -> None:
    """Take part in the collectives of the other ranks' micro-batch: forward two tokens after a prompt of two and, with
    gradients on, make a backward of gradient 0."""
    from rlhf_pg.types import Batch

    tokens = torch.zeros(1, 2, dtype=torch.int64, device=device)
    lengths = torch.full((1,), 2, device=device)
    zeros = torch.zeros(1, 2, device=device)
    outputs = module(Batch(tokens, lengths, tokens[:, 0], tokens, tokens == 0, zeros[:, 0], zeros))
    if torch.is_grad_enabled():
        tensors = outputs if isinstance(outputs, tuple) else (outputs,)
        module.backward(sum(x.sum() for x in tensors) * 0.0)  # pyright: ignore[reportCallIssue]


def saved_buffers(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Return (name, buffer) of the buffers that a state dict has."""
    saved = module.state_dict().keys()
    return [(name, buffer) for name, buffer in module.named_buffers() if name in saved]


def _configuration(launch: Mapping[str, Any], size: int) -> dict[str, Any]:
    """Return the launch's configuration without what does not apply: the trainer makes batches, weights are float32."""
    config = {k: copy.deepcopy(v) for k, v in launch.items() if v != "auto" and k not in ("bf16", "fp16", "amp")}
    zero = {k: v for k, v in config["zero_optimization"].items() if v != "auto"}
    if zero["stage"] == 3:
        zero.setdefault("stage3_param_persistence_threshold", UNSHARDED_BELOW)
    return {
        **config,
        "zero_optimization": zero,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "train_batch_size": size,
        "managed_gradient_accumulation": False,  # any number of backwards, then a step
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # offloaded: torch's AdamW on the CPU, which needs no compiler
        "steps_per_print": 2**31,
    }


def _outer_head(module: nn.Module) -> nn.Linear | None:
    """Return the output head, if `module` (a policy) reads its weight itself instead of calling it."""
    model = getattr(module, "model", None)
    return model.get_output_embeddings() if model is not None else None


def _stack_outputs(module: nn.Module, context: Callable[[], AbstractContextManager]) -> None:
    """Make the module's forward run inside a context and return its K tensors [B, C] as one [K, B, C].

    DeepSpeed counts the tensors of a forward that a loss reaches, and the count must be the same on every rank and in
    idle passes.
    """
    inner = module.forward

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        with context():
            outputs = inner(*args, **kwargs)
        return torch.stack(outputs) if isinstance(outputs, tuple) else outputs

    module.forward = forward


def _unstack_outputs(engine: Any) -> None:
    """Make the engine return the K tensors [B, C] again that `_stack_outputs` made one."""
    inner = engine.forward

    def forward(*args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, ...]:
        outputs = inner(*args, **kwargs)
        return outputs.unbind() if outputs.dim() == 3 else outputs

    engine.forward = forward
