"""What one update costs by each algorithm on the same rollouts, without rollout and reward.

A TRPO step (ten conjugate gradient iterations) against a PPO epoch, and a critic that shares the policy's model against
none. All in one process, one update a command.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.shapes import Model, Shape

REINFORCE, PPO, TRPO, GRPO = "reinforce_baseline", "ppo", "trpo", "grpo"
SHAPES = {
    "1M, P 16, C 64": Shape(Model(128, 4, 384, 4, 2, 99, True), prompts=16, samples=8, prompt=16, completion=64),
    "13M, P 64, C 64": Shape(Model(384, 6, 1152, 4, 2, 99, True), prompts=4, samples=8, prompt=64, completion=64),
}
TWO, SHARED, NO_KL = {"epochs": 2}, {"backbone": "policy"}, {"coefficient": 0.0}
VARIANTS: dict[str, dict[str, Any]] = {  # the sections of a recipe that make each
    "PPO epoch": {"algorithm": {"name": PPO}, "critic": SHARED},
    "TRPO step": {"algorithm": {"name": TRPO, "options": {"cg_iterations": 10}}},
    "2 epochs, no critic": {"algorithm": {"name": GRPO}, "update": TWO},
    "2 epochs, shared critic": {"algorithm": {"name": PPO}, "critic": SHARED, "update": TWO},
    "on-policy, no critic": {"algorithm": {"name": "rloo"}},
    "on-policy, shared critic": {"algorithm": {"name": REINFORCE}, "critic": SHARED},
}
RATIOS = [
    ("TRPO step", "PPO epoch"),
    ("2 epochs, shared critic", "2 epochs, no critic"),
    ("on-policy, shared critic", "on-policy, no critic"),
]


def updates(specification: dict[str, Any], port: Any) -> None:
    """Serve as a contender: a command names its `case`, a variant."""
    from benchmarks import ours  # here: the command reads the tables above and must not import torch
    from benchmarks.shapes import shape_of

    shape, folder = shape_of(specification["shape"]), Path(specification["folder"])
    takes = {}
    for name, sections in VARIANTS.items():
        settings = ours.recipe(shape, folder, folder / "unused", kl=NO_KL, **sections)
        takes[name] = ours.updater(ours.build(settings), shape)
    port.serve(lambda command: takes[command["case"]]())
