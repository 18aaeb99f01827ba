"""How this process was started: by itself, as one of several replicas, or under DeepSpeed ZeRO. Imports no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Launch:
    """The processes of a run and how they divide its state."""

    processes: int = 1
    zero_stage: int = 0  # DeepSpeed's: 1 shards the optimizer, 2 gradients too, 3 weights too; 0: all have everything

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Launch:
        """Read what `accelerate launch` and `torchrun` put into the environment of every process.

        Raises ValueError for a DeepSpeed configuration file that cannot be read.
        """
        processes = int(environment.get("WORLD_SIZE", "1"))
        if environment.get("ACCELERATE_USE_DEEPSPEED", "false").lower() != "true":
            return cls(processes)
        file = environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
        if file == "none":
            return cls(processes, int(environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")))
        try:
            return cls(processes, int(json.loads(Path(file).read_text())["zero_optimization"]["stage"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"the DeepSpeed configuration {file} names no zero_optimization.stage: {error}") from error

    @property
    def deepspeed(self) -> bool:
        """Whether DeepSpeed steps the optimizer."""
        return self.zero_stage > 0

    @property
    def shards_weights(self) -> bool:
        """Whether no process has all weights."""
        return self.zero_stage == 3
