"""How a run's state is spread over processes: which process holds which part of weights, gradients and optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlhf_pg.config import Launch

GIB = 2**30
BUCKET = 500_000_000  # numbers DeepSpeed reduces at once, its default
CONTEXT, COMMUNICATION = GIB // 2, GIB // 2  # bytes: a CUDA process without tensors; NCCL's buffers
LIBRARIES = GIB // 2  # bytes of a process on a CPU without tensors: Python, torch, transformers
USABLE = 0.9  # of a device's memory: allocators cannot fill every gap
GPU_COUNTS = (1, 8, 64)  # that are laid out where the command names none


@dataclass(frozen=True)
class Layout:
    """One way to launch a recipe. Its methods take the size of the whole model and return that in one process."""

    name: str
    processes: int = 1
    stage: int = 0  # of ZeRO: 1 shards the optimizer, 2 gradients too, 3 weights too
    offload: bool = False  # optimizer (stages 2 and 3) and weights (stage 3) wait in the host's memory

    def weights(self, size: int) -> int:
        return self._sharded(size, from_stage=3)

    def gradients(self, size: int) -> int:
        return self._sharded(size, from_stage=2)

    def optimizer(self, size: int) -> int:
        return self._sharded(size, from_stage=1)

    def _sharded(self, size: int, from_stage: int) -> int:
        return -(-size // self.processes) if self.stage >= from_stage else size

    def buckets(self, gradients: int) -> int:
        """Return the bytes of two gradient buckets: one is filled while the other is sent."""
        return 2 * min(4 * BUCKET, gradients) if self.processes > 1 else 0

    @property
    def weights_on_host(self) -> bool:
        return self.offload and self.stage == 3

    def room(self, memory: int, is_gpu: bool) -> int:
        """Return the bytes for tensors of a device with `memory` bytes that one process has for itself."""
        communication = COMMUNICATION if self.processes > 1 else 0
        return int(USABLE * memory) - (CONTEXT + communication if is_gpu else LIBRARIES)


ONE_PROCESS = Layout("one process")


def layout_of(launch: Launch) -> Layout:
    """Return the layout of this launch; whether DeepSpeed offloads is not known here, and taken for no."""
    if launch.processes == 1 and not launch.zero_stage:
        return ONE_PROCESS
    return Layout(f"ZeRO-{launch.zero_stage}" if launch.zero_stage else "DDP", launch.processes, launch.zero_stage)


def layouts(processes: int) -> list[Layout]:
    """Return the layouts of a launch of `processes` processes."""
    if processes == 1:
        return [ONE_PROCESS, Layout("ZeRO-2, offloaded", 1, 2, offload=True)]
    return [
        Layout("DDP", processes),
        *(Layout(f"ZeRO-{stage}", processes, stage) for stage in (1, 2, 3)),
        *(Layout(f"ZeRO-{stage}, offloaded", processes, stage, offload=True) for stage in (2, 3)),
    ]
