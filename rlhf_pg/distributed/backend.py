"""How modules and optimizers run on this device and beside other processes. Built on Accelerate.

Replicas (one process, DDP): every rank has all weights and accumulates the gradients of its own micro-batches, any
number of them; per optimizer step, one sum over all ranks makes the gradients equal. Modules are not wrapped in DDP,
whose hooks would demand the same number of forwards and backwards of every rank.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, InitProcessGroupKwargs
from torch import Tensor, nn
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from rlhf_pg.display import quiet
from rlhf_pg.distributed import zero
from rlhf_pg.distributed.ranks import Ranks
from rlhf_pg.models.adapter import is_learned, learned, load_learned
from rlhf_pg.storage import optimizer_state
from rlhf_pg.storage.digest import weights_digest

MARGIN_S = 120.0  # the process group's own timeout comes this much later than the watchdog, whose message says more


class Backend:
    """Device, precision and process group. Objectives are divided by counts summed over all ranks, so that their number
    cannot change the gradient."""

    def __init__(self, dtype: Literal["float32", "bfloat16"] = "float32", timeout_s: float = 1800.0):
        self.dtype = dtype
        precision = "bf16" if dtype == "bfloat16" else "no"
        if not _asks_for_deepspeed():
            AcceleratorState._reset_state()  # an earlier run of this process may have had another dtype
        with quiet.prints_logged():
            self.accelerator = Accelerator(mixed_precision=precision, **_process_group(timeout_s))
        self.device = self.accelerator.device
        rank, size = self.accelerator.process_index, self.accelerator.num_processes
        self.ranks = Ranks(rank, size, self.device, timeout_s)
        self.zero = self._zero()
        self.resident_before = _from_now_on(self.device)
        started = int(os.environ.get("WORLD_SIZE", "1"))
        if size != started:
            raise ValueError(f"{started} processes were started, but they found {size} of each other")

    def _zero(self) -> zero.Zero | None:
        """Return DeepSpeed's ZeRO if the launch asks for it. Raises ValueError where Accelerate would leave it out."""
        active = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        if _asks_for_deepspeed() != active:
            raise ValueError(
                f"the accelerate configuration asks for {'no ' if active else ''}DeepSpeed, but Accelerate "
                f"started {self.accelerator.distributed_type.value}: use_cpu must be false with DeepSpeed, on a CPU too"
            )
        if not active:
            return None
        unset_hf_deepspeed_config()  # else transformers would shard every model while it loads it, small ones too
        plugin: Any = self.accelerator.state.deepspeed_plugin
        return zero.Zero(plugin.deepspeed_config, self.ranks.size, self.autocast)

    def prepare(self, module: nn.Module, optimizer: torch.optim.Optimizer, clip: float) -> tuple[Any, Any]:
        """Return a module and its optimizer as they are run here, with rank 0's weights on every rank.

        `clip` is the largest gradient norm.
        """
        self._broadcast_weights(module)
        if self.zero:
            engine, stepped = self.zero.prepare(module, optimizer, clip)
            engine.collective_backend = self  # its passes may be collectives, for `gradient_step.micro_batches`
            return engine, stepped
        prepared = self.accelerator.prepare_model(module, evaluation_mode=True)  # True: not wrapped
        return prepared, self.prepare_optimizer(optimizer)

    def prepare_frozen(self, module: nn.Module) -> Any:
        """Return a module that is never trained as it is run here: sharded, or as it is."""
        if not self.sharded or self.zero is None:
            return module
        engine = self.zero.prepare_frozen(module)
        engine.collective_backend = self
        return engine

    def prepare_optimizer(self, optimizer: torch.optim.Optimizer) -> Any:
        """Return an optimizer as it is run here, of parameters whose module was prepared with another one."""
        return self.accelerator.prepare_optimizer(optimizer)

    def _broadcast_weights(self, module: nn.Module) -> None:
        """Give all ranks rank 0's weights. Raises ValueError if their digests differ afterwards."""
        named = dict(module.named_parameters()) | dict(module.named_buffers())
        what = f"the weights of the {type(module).__name__.lower()}"
        self.ranks.broadcast(named.values(), what)
        if self.ranks.size > 1 and len(set(self.ranks.gather(weights_digest(named), what))) > 1:
            raise ValueError(f"{what} are not the same on all ranks after they were sent")

    def require_one_process(self, command: str) -> Backend:
        """Return this backend. Raises ValueError, naming the command, if there are several processes."""
        if self.ranks.size > 1:
            raise ValueError(f"{command} is done by one process: start it without `accelerate launch`")
        return self

    def unwrap(self, policy: nn.Module) -> Any:
        """Return the module itself, without what `prepare` put around it."""
        return getattr(policy, "module", policy) if self.zero else policy

    @property
    def deepspeed(self) -> bool:
        """Whether DeepSpeed holds the weights, gradients or optimizer."""
        return self.zero is not None

    @property
    def sharded(self) -> bool:
        """Whether no rank has all weights: only `gathered_weights` reads them then, and forwards are collectives."""
        return self.zero is not None and self.zero.stage == 3

    @property
    def state_layout(self) -> dict[str, Any]:
        """How training state is spread over processes, for checkpoints: {"kind": "ZeRO-2", "processes": 8}."""
        kind = f"ZeRO-{self.zero.stage}" if self.zero else "replicas"
        return {"kind": kind, "processes": self.ranks.size}

    def layout(self, prepared: Any) -> str:
        """Return in words how a module that `prepare` returned is spread over the processes, DeepSpeed's as it says."""
        if self.zero:
            return self.zero.described(prepared)
        return "DDP" if self.ranks.size > 1 else "one process"

    def gathered_weights(self, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, weight) of all that a state dict has, tied ones once; all ranks must iterate.

        One tensor at a time is gathered: use each before the next.
        """
        if self.zero:
            yield from self.zero.gathered_weights(module)
            return
        yield from module.named_parameters()
        yield from zero.saved_buffers(module)

    def weights_to_save(self, module: nn.Module) -> dict[str, Tensor]:
        """Return the weights that the first rank saves, frozen ones left out; all ranks must call this.

        Under DeepSpeed they are copies on the CPU, and the other ranks get none.
        """
        if not self.zero:
            return learned(module)
        saved = is_learned(module)
        copies: dict[str, Tensor] = {}
        for name, tensor in self.gathered_weights(module):
            if self.ranks.first and saved(name):
                copies[name] = tensor.to("cpu", copy=True)
        return copies

    def load_weights(self, prepared: Any, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Undo `weights_to_save`; `module` is `prepared`, or a part of it, unwrapped."""
        if self.zero:
            self.zero.load(prepared, tensors, module)
        else:
            load_learned(module, tensors)

    def optimizer_state(self, optimizer: Any, named: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return (tensors, JSON) of an optimizer of the parameters `named`, or of this rank's shards of it."""
        return optimizer.state() if self.zero else optimizer_state.capture(optimizer, named)

    def load_optimizer_state(self, optimizer: Any, named: Mapping[str, Tensor], tensors, saved) -> None:
        """Undo `optimizer_state`."""
        if self.zero:
            optimizer.load_state(tensors, saved)
        else:
            optimizer_state.restore(optimizer, named, tensors, saved)

    def peak_memory_gib(self) -> float:
        """Return the most memory that tensors of this process have taken since it joined, in GiB.

        On a CUDA device torch counts them; on a CPU it is what the resident memory grew by, which includes what the
        allocator keeps.
        """
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**30
        return max(0, _resident("VmHWM") - self.resident_before) / 2**30

    def sum(self, values: Tensor, what: str = "a sum") -> Tensor:
        """Return the sum of a tensor over all ranks, on the backend's device."""
        return self.ranks.sum(values, what)

    def maximum(self, value: Tensor, what: str) -> float:
        """Return the largest of a scalar over all ranks."""
        return max(self.ranks.gather(float(value), what))

    def backward(self, loss: Tensor, module: nn.Module) -> None:
        """Add this micro-batch's share of the gradient of a prepared module."""
        if self.zero:  # which averages over the ranks
            module.backward(loss * self.ranks.size)  # pyright: ignore[reportCallIssue]
        else:
            self.accelerator.backward(loss)

    def idle_passes(self, passes: int) -> int:
        """Return how many idle passes this rank adds to its `passes`, which are backwards too where gradients are on.

        Where passes are collectives all ranks then make the same number; without, at least one backward, which
        DeepSpeed's step needs.
        """
        if self.zero is None or self.zero.stage < (2 if torch.is_grad_enabled() else 3):
            return int(torch.is_grad_enabled() and not passes)
        return max(self.ranks.gather(passes, "the number of micro-batches")) - passes

    def idle_pass(self, module: nn.Module) -> None:
        """Take part in one pass of the other ranks, with a gradient of 0."""
        zero.idle_pass(module, self.device)

    def sum_gradients(self, parameters: Sequence[nn.Parameter], what: str = "gradients") -> None:
        """Replace .grad by its sum over all ranks: call it once per optimizer step, before gradients are read."""
        self.ranks.sum_gradients(parameters, what)

    def clip(self, optimizer: Any, max_norm: float) -> float:
        """Sum an optimizer's gradients over all ranks, scale them to at most `max_norm` (global 2-norm), and return the
        norm before. DeepSpeed takes the step too, if the norm is finite."""
        if self.zero:
            with self.ranks.waiting("gradients and step"):
                return optimizer.clip()
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.sum_gradients(parameters)
        return float(self.accelerator.clip_grad_norm_(parameters, max_norm))  # pyright: ignore[reportArgumentType]

    def close(self) -> None:
        """Stop the watchdog. The process group ends with the process."""
        self.ranks.close()

    def autocast(self):
        """Return a context with the arithmetic of `model.dtype`, for forwards outside the prepared policy."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == "bfloat16")


def _from_now_on(device: torch.device) -> int:
    """Forget the peaks of memory so far, of an earlier run in this process, and return the resident bytes now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):  # some containers forbid it; then an earlier peak shows
        Path("/proc/self/clear_refs").write_text("5")
    return _resident("VmRSS")


def _resident(field: str) -> int:
    """Return bytes of this process: "VmRSS", resident now, or "VmHWM", the most since its peak was forgotten."""
    match = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(match[1]) * 2**10 if match else 0


def _process_group(timeout_s: float) -> dict[str, Any]:
    """Return the arguments with which Accelerate joins the processes of this launch; none for a single process.

    Without a GPU the group is gloo's. For DDP `cpu=True` chooses it; for DeepSpeed the backend's name does, because
    `cpu=True` would silently switch DeepSpeed off.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return {}
    timeout = timedelta(seconds=timeout_s + MARGIN_S)
    if torch.cuda.is_available():
        return {"kwargs_handlers": [InitProcessGroupKwargs(timeout=timeout)]}
    if not _asks_for_deepspeed():
        return {"kwargs_handlers": [InitProcessGroupKwargs(timeout=timeout)], "cpu": True}
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    return {"kwargs_handlers": [InitProcessGroupKwargs(backend="gloo", timeout=timeout)]}


def _asks_for_deepspeed() -> bool:
    """Return whether `accelerate launch` was told to use DeepSpeed."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
