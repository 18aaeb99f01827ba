"""Everything that depends on how many processes there are: device, precision, sums over ranks. Built on Accelerate."""

from __future__ import annotations

import resource
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedType, ProjectConfiguration
from torch import Tensor, nn


class Backend:
    """One process group. Objectives are divided by counts summed over it, so its size cannot change the gradient."""

    def __init__(
        self,
        dtype: Literal["float32", "bfloat16"] = "float32",
        trackers: Sequence[str] = (),
        folder: Path | None = None,
    ):
        missing = set(trackers) - {kind.value for kind in get_available_trackers()}
        if missing:  # Accelerate would leave it out without a word
            raise ValueError(
                f"log.trackers: {', '.join(sorted(missing))} is not installed; install it, or leave it out"
            )
        precision = "bf16" if dtype == "bfloat16" else "no"
        places = ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder / "trackers")) if folder else None
        self.accelerator = Accelerator(mixed_precision=precision, log_with=[*trackers] or None, project_config=places)
        if self.accelerator.num_processes > 1:
            raise ValueError("training on several processes is not supported yet: start one process")
        self.device = self.accelerator.device

    def prepare(self, *parts: Any) -> Any:
        """Modules and optimizers as this layout runs them."""
        return self.accelerator.prepare(*parts)

    def unwrap(self, policy: nn.Module) -> Any:
        """The policy itself, without what `prepare` put around it."""
        return self.accelerator.unwrap_model(policy)

    @property
    def deepspeed(self) -> bool:
        """Whether DeepSpeed holds the weights, gradients or optimizer."""
        return self.accelerator.distributed_type == DistributedType.DEEPSPEED

    def peak_memory_mb(self) -> float:
        """The most memory this process has held so far: on the device if there is one, else resident."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # Linux counts KiB

    def sum(self, count: Tensor) -> Tensor:
        """The sum of a tensor over all ranks, on the backend's device."""
        return self.accelerator.reduce(count.to(self.device), reduction="sum")  # pyright: ignore[reportReturnType]

    def backward(self, loss: Tensor) -> None:
        """Add this micro-batch's share of the gradient. Ranks average their gradients, hence the factor."""
        self.accelerator.backward(loss * self.accelerator.num_processes)

    def clip(self, parameters, max_norm: float) -> float:
        """Scale gradients to at most `max_norm` (global 2-norm) and return the norm they had."""
        return float(self.accelerator.clip_grad_norm_(parameters, max_norm))  # pyright: ignore[reportArgumentType]

    def start_trackers(self, project: str, run: str, config: Mapping[str, Any]) -> None:
        """Open the trackers given at the start, under `project`, with the recipe as their configuration."""
        if self.accelerator.log_with:
            self.accelerator.init_trackers(project, config=dict(_flat(config)), init_kwargs={"wandb": {"name": run}})

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """One step's numbers to the trackers."""
        self.accelerator.log({k: v for k, v in metrics.items() if v is not None}, step=step)

    def close(self) -> None:
        """Flush and close the trackers."""
        self.accelerator.end_training()

    def autocast(self):
        """The arithmetic of `model.dtype`, for forwards outside the prepared policy (the engine's)."""
        return self.accelerator.autocast()


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("optimizer.lr", 1e-6), ...: what trackers take as configuration."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, int | float) else str(value)
