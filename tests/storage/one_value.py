"""Checkpoints in which everything says one value, so that a mixture of two saves is seen."""

from pathlib import Path

import torch

from rlhf_pg.storage import checkpoint


def content(value: int) -> dict:
    """Two groups and a state that all say `value`: a mixture of two saves is seen."""
    return {"weights": {"w": torch.full((64,), float(value))}, "optimizer": {"m": torch.full((8,), value)}}


def save(directory: Path, step: int, value: int, keep: int = 2) -> Path:
    return checkpoint.save(directory, step, content(value), {"value": value}, keep)


def value_of(path: Path | None) -> int:
    """The one value everything in a checkpoint says."""
    assert path is not None
    tensors, state = checkpoint.load(path)
    value = state["value"]
    assert tensors["weights"]["w"].tolist() == [float(value)] * 64
    assert tensors["optimizer"]["m"].tolist() == [value] * 8
    return value
