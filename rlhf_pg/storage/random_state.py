"""The global random streams of this process as tensors and JSON: torch (CPU and every CUDA device), numpy, `random`."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

log = logging.getLogger(__name__)


def capture() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return (tensors, JSON): all that is needed for the same draws to come again."""
    tensors = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors.update({f"cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())})
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, words, next_gauss = random.getstate()
    return tensors, {
        "numpy": [kind, keys.tolist(), position, has_gauss, gauss],  # type: ignore[union-attr]
        "python": [version, list(words), next_gauss],
    }


def restore(tensors: Mapping[str, Tensor], saved: Mapping[str, Any]) -> None:
    """Undo `capture`. Call it last: building and loading modules draws numbers.

    A saved CUDA stream whose device this machine does not have is left out with a warning.
    """
    version, words, next_gauss = saved["python"]
    random.setstate((version, tuple(words), next_gauss))
    kind, keys, position, has_gauss, gauss = saved["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, gauss))
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for name, state in tensors.items():
        if name == "cpu":
            torch.set_rng_state(state)
        elif int(name.removeprefix("cuda.")) < devices:
            torch.cuda.set_rng_state(state, int(name.removeprefix("cuda.")))
        else:
            log.warning("random stream of %s not restored: this machine has %d CUDA devices", name, devices)
