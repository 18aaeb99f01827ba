"""The runs that are compared: one process in this one, two by `accelerate launch`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlhf_pg import config
from tests.training import small_run

STEPS = 4
EVALUATED = {"data": {"eval": {"task": "arithmetic", "options": {"count": 5}}}, "eval": {"samples": 2, "k": [1, 2]}}
ROLLOUT = {"prompts_per_step": 5, "samples_per_prompt": 4, "max_new_tokens": 6}  # 5 prompts: uneven shares
ALGORITHMS: dict[str, dict[str, Any]] = {
    "reinforce": {"kl": {"coefficient": 0.0}},
    "reinforce_baseline": {},
    "trpo": {"algorithm": {"name": "trpo", "options": {"fisher_fraction": 0.5, "max_kl": 0.001}}, "optimizer": None},
    "ppo": {"update": {"epochs": 1, "minibatches": 2}, "critic": {"minibatches": 2, "optimizer": {"lr": 1e-3}}},
    "grpo": {  # minibatches of one prompt or two
        "update": {"epochs": 2, "minibatches": 3, "tokens_per_microbatch": 64},
        "run": {"preflight": True},
    },
    "rloo": {"kl": {"coefficient": 0.05, "placement": "reward", "estimator": "k1"}},
}
REPLICAS = {  # what only replicas do
    "shared critic": {"algorithm": {"name": "ppo"}, "critic": {"backbone": "policy"}},
    "credit in the update": {
        "algorithm": {"name": "reinforce_baseline"},
        "critic": {"backbone": "policy"},
        "kl": {"coefficient": 0.0},
    },
    "lora": {"algorithm": {"name": "grpo"}, "model": {"path": "tiny", "lora": {"rank": 2}}},
}
EDGES = {
    "no row": {"algorithm": {"name": "grpo"}, "rollout": {**ROLLOUT, "prompts_per_step": 1}},
    "nothing to learn": {
        "algorithm": {"name": "grpo"},
        "kl": {"coefficient": 0.0},
        "rollout": {**ROLLOUT, "prompts_per_step": 2},
        "rewards": [{"fn": f"{small_run.REWARDS}:digits_after_an_odd_digit"}],
    },
}
RUNS = {**ALGORITHMS, **REPLICAS, **EDGES}
CUT = {  # several optimizer steps a rollout, to be stopped between two of them
    "algorithm": {"name": "ppo"},
    "update": {"epochs": 2, "minibatches": 2},
    "critic": {"minibatches": 2},
    "checkpoint": {"every": 1, "keep": 9},
    "run": {"steps": 3},
}


def place(root: Path, name: str) -> Path:
    """The folder of a run under `root`."""
    return root / name.replace(" ", "_")


def cut(root: Path, after: int) -> list[dict[str, Any]]:
    """Plays: an uncut run, the same one stopped on rank 1 after some optimizer steps, and resumed."""
    resumed = {**CUT, "run": {**CUT["run"], "resume": "auto"}}
    return [
        {"recipe": recipe(root / "uncut", "ppo", CUT)},
        {"recipe": recipe(root / "cut", "ppo", CUT), "stop": {"rank": 1, "after": after}},
        {"recipe": recipe(root / "cut", "ppo", resumed)},
    ]


def recipe(folder: Path, name: str, changes: dict[str, Any]) -> dict[str, Any]:
    """A small run as plain values; `name` is that of an algorithm unless `changes` has one."""
    rewards = [{"fn": f"{small_run.REWARDS}:share_of_digits"}]
    sections = {"algorithm": {"name": name}, "rollout": ROLLOUT, "rewards": rewards, **changes}
    mapping = small_run.mapping(folder, **{**sections, "run": {"steps": STEPS, **changes.get("run", {})}})
    return {key: value for key, value in mapping.items() if value is not None}


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without what depends on the clock or on the process."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "memory/"))} for row in rows]


def in_one_process(folder: Path, plain: dict[str, Any]) -> int:
    """The same run in this process."""
    from rlhf_pg.commands.run_training import train

    return train(config.parse(plain, config.Recipe))
