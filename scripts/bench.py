"""Times parts of the trainer side by side: one process, variants interleaved round by round, medians and their ratios.

    python scripts/bench.py ladder [--rounds 9] [--threads 2] [--out runs/bench]

`ladder`: what one update costs by each algorithm on the same rollouts, without rollout and reward: a TRPO step (ten
conjugate gradient iterations) against a PPO epoch, and a critic that shares the policy's model against none.
Prints a table, writes bench.json and bench.png.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from rich.console import Console
from rich.table import Table

from rlhf_pg import config
from rlhf_pg.models.load import save_model, tiny_model
from rlhf_pg.models.tokenizer import character_tokenizer
from rlhf_pg.train.credit import assign
from rlhf_pg.train.loop import UPDATES
from rlhf_pg.train.setup import Session, build
from rlhf_pg.train.signals import signals
from rlhf_pg.types import Batch

SHAPES: dict[str, dict[str, Any]] = {  # model, prompts N, samples G, prompt length P, completion length C
    "1M, P 16, C 64": dict(hidden=128, layers=4, prompts=16, samples=8, prompt=16, completion=64),
    "13M, P 64, C 64": dict(hidden=384, layers=6, prompts=4, samples=8, prompt=64, completion=64),
}
REINFORCE, PPO, TRPO, GRPO = "reinforce_baseline", "ppo", "trpo", "grpo"


@dataclass(frozen=True)
class Variant:
    """One thing to time: an algorithm with its recipe sections."""

    name: str
    sections: dict[str, Any]


def variants() -> list[Variant]:
    two = {"epochs": 2}
    shared = {"backbone": "policy"}
    return [
        Variant("PPO epoch", {"algorithm": {"name": PPO}, "critic": shared}),
        Variant("TRPO step", {"algorithm": {"name": TRPO, "options": {"cg_iterations": 10}}}),
        Variant("2 epochs, no critic", {"algorithm": {"name": GRPO}, "update": two}),
        Variant("2 epochs, shared critic", {"algorithm": {"name": PPO}, "critic": shared, "update": two}),
        Variant("on-policy, no critic", {"algorithm": {"name": "rloo"}}),
        Variant("on-policy, shared critic", {"algorithm": {"name": REINFORCE}, "critic": shared}),
    ]


RATIOS = [
    ("TRPO step", "PPO epoch"),
    ("2 epochs, shared critic", "2 epochs, no critic"),
    ("on-policy, shared critic", "on-policy, no critic"),
]


def ladder(rounds: int, folder: Path) -> dict[str, dict[str, list[float]]]:
    """Seconds of every round by shape and variant."""
    measured: dict[str, dict[str, list[float]]] = {}
    for name, shape in SHAPES.items():
        model = _model(folder / "models" / name.split(",")[0], shape)
        updates = {v.name: _update(model, shape, v, folder) for v in variants()}
        measured[name] = {v: [] for v in updates}
        for number in range(rounds + 1):  # the first warms up
            for variant, take in updates.items():
                started = time.perf_counter()
                take()
                if number:
                    measured[name][variant].append(time.perf_counter() - started)
    return measured


def _model(folder: Path, shape: dict[str, Any]) -> Path:
    tokenizer = character_tokenizer()
    sizes = dict(hidden_size=shape["hidden"], intermediate_size=3 * shape["hidden"], num_hidden_layers=shape["layers"])
    save_model(tiny_model(seed=0, vocabulary=len(tokenizer), **sizes), tokenizer, folder)
    return folder


def _update(model: Path, shape: dict[str, Any], variant: Variant, folder: Path) -> Callable[[], None]:
    """Signals, credit and the policy's update on fixed random rollouts, as the loop does them."""
    raw: dict[str, Any] = {
        "run": {"dir": str(folder / "unused"), "steps": 1, "preflight": False},
        "model": {"path": str(model)},
        "data": {"train": {"task": "arithmetic"}},
        "rollout": {
            "prompts_per_step": shape["prompts"],
            "samples_per_prompt": shape["samples"],
            "max_new_tokens": shape["completion"],
        },
        "rewards": [{"fn": "gsm8k"}],
        "kl": {"coefficient": 0.0},
    }
    session = build(config.parse(raw | variant.sections, config.Recipe))
    batch = _batch(session, shape)

    def take() -> None:
        learner = session.learner
        made = signals(learner, None, batch)
        credit = assign(learner, batch, made)
        for _ in UPDATES[learner.objective.algorithm.update](learner, batch, made, credit, 0):
            pass

    return take


def _batch(session: Session, shape: dict[str, Any]) -> Batch:
    """Random tokens, every row as long as can be, rewards drawn once: the same work for every variant."""
    random = torch.Generator().manual_seed(0)
    rows, vocabulary = shape["prompts"] * shape["samples"], session.model.config.vocab_size
    size = (rows, shape["completion"])
    return Batch(
        prompt_tokens=torch.randint(4, vocabulary, (shape["prompts"], shape["prompt"]), generator=random),
        prompt_lengths=torch.full((shape["prompts"],), shape["prompt"]),
        group=torch.arange(shape["prompts"]).repeat_interleave(shape["samples"]),
        tokens=torch.randint(4, vocabulary, size, generator=random),
        mask=torch.ones(size, dtype=torch.bool),
        reward=torch.rand(rows, generator=random),
        logp_rollout=torch.full(size, -3.0),
    )


def show(measured: dict[str, dict[str, list[float]]], console: Console) -> list[dict[str, Any]]:
    """Print medians and ratios; returns the ratios."""
    found = []
    for shape, seconds in measured.items():
        table = Table("update", "median s", "lowest", "highest", title=shape, title_justify="left")
        for variant, times in seconds.items():
            table.add_row(variant, *(f"{f(times):.3f}" for f in (statistics.median, min, max)))
        console.print(table)
        for above, below in RATIOS:
            ratio = statistics.median(seconds[above]) / statistics.median(seconds[below])
            found.append({"shape": shape, "of": above, "to": below, "ratio": round(ratio, 3)})
            console.print(f"  {above} / {below}: {ratio:.2f}")
    return found


def draw(measured: dict[str, dict[str, list[float]]], path: Path) -> None:
    """One panel per shape: a bar per variant, a dot per round."""
    figure, panels = plt.subplots(1, len(measured), figsize=(5.2 * len(measured), 3.2), squeeze=False)
    for panel, (shape, seconds) in zip(panels[0], measured.items(), strict=True):
        names = list(seconds)[::-1]
        panel.barh(names, [statistics.median(seconds[n]) for n in names], color="#9db7d5")
        for at, name in enumerate(names):
            panel.plot(seconds[name], [at] * len(seconds[name]), ".", color="#1f3b57", markersize=4)
        panel.set(title=shape, xlabel="seconds per update")
        panel.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["ladder"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    measured = ladder(arguments.rounds, arguments.out)
    ratios = show(measured, Console())
    record = {"threads": arguments.threads, "rounds": arguments.rounds, "seconds": measured, "ratios": ratios}
    (arguments.out / "bench.json").write_text(json.dumps(record, indent=1))
    draw(measured, arguments.out / "bench.png")
    print(f"{arguments.out / 'bench.json'}, {arguments.out / 'bench.png'}")


if __name__ == "__main__":
    main()
