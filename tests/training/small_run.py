"""A training run small enough for a test: random tiny weights, arithmetic prompts, a reward that needs no model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from rlhf_pg import config
from rlhf_pg.commands.run_training import train

REWARDS = Path(__file__).with_name("small_rewards.py")


def recipe(folder: Path, **changes: Any) -> config.ResolvedRecipe:
    """`changes`: section=dict, merged into the defaults of `mapping`."""
    return parsed(mapping(folder, **changes))


def parsed(raw: dict[str, Any]) -> config.ResolvedRecipe:
    return config.parse(raw, config.Recipe)


def mapping(folder: Path, **changes: Any) -> dict[str, Any]:
    """The recipe as plain values."""
    raw: dict[str, Any] = {
        "run": {"dir": str(folder), "steps": 3, "preflight": False},
        "model": {"path": "tiny"},
        "data": {"train": {"task": "arithmetic", "options": {"count": 24}}},
        "rollout": {"prompts_per_step": 4, "samples_per_prompt": 4, "max_new_tokens": 6},
        "rewards": [{"fn": f"{REWARDS}:share_of_sevens"}],
        "optimizer": {"lr": 1e-3},
        "kl": {"coefficient": 0.05},
        "log": {"live": "off"},
    }
    for section, values in changes.items():
        raw[section] = {**raw.get(section, {}), **values} if isinstance(values, dict) else values
    return raw


def run(folder: Path, **changes: Any) -> int:
    return train(recipe(folder, **changes))


def final_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def assert_bitwise_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
