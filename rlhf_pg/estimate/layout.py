"""How a run's state is spread over processes: which process holds which part of weights, gradients and optimizer."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30
BUCKET = 500_000_000  # numbers DeepSpeed reduces at once, its default
CONTEXT, COMMUNICATION = GIB // 2, GIB // 2  # a CUDA process without tensors; NCCL's buffers


@dataclass(frozen=True)
class Layout:
    """One way to run the same recipe. Sizes go in as of the whole model and come out as of one process."""

    name: str
    processes: int = 1
    stage: int = 0  # ZeRO's: 1 shards the optimizer, 2 gradients too, 3 weights too
    offload: bool = False  # optimizer (stages 2 and 3) and weights (stage 3) wait in the host's memory

    def of_weights(self, size: int) -> int:
        return -(-size // self.processes) if self.stage == 3 else size

    def of_reference(self, size: int) -> int:
        return self.of_weights(size)

    def of_gradients(self, size: int) -> int:
        return -(-size // self.processes) if self.stage >= 2 else size

    def of_optimizer(self, size: int) -> int:
        return -(-size // self.processes) if self.stage else size

    def buckets(self, gradients: int) -> int:
        """Two: one is filled while the other is sent."""
        return 2 * min(4 * BUCKET, gradients) if self.processes > 1 else 0

    @property
    def weights_on_host(self) -> bool:
        return self.offload and self.stage == 3

    @property
    def gradients_on_host(self) -> bool:
        return self.offload

    @property
    def context(self) -> int:
        return CONTEXT + (COMMUNICATION if self.processes > 1 else 0)


ONE = Layout("one process")


def layouts(processes: int) -> list[Layout]:
    """Those that so many processes can have."""
    if processes == 1:
        return [ONE, Layout("ZeRO-2, offloaded", 1, 2, offload=True)]
    return [
        Layout("DDP", processes),
        *(Layout(f"ZeRO-{stage}", processes, stage) for stage in (1, 2, 3)),
        *(Layout(f"ZeRO-{stage}, offloaded", processes, stage, offload=True) for stage in (2, 3)),
    ]
