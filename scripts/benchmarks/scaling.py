"""The points at which the growth of a step is measured: one number at a time is moved away from a base shape."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.shapes import M1, M8, M31, SHAPES, Shape

BASE = Shape(M8, prompts=4, samples=8, prompt=64, completion=64)
KEYS = ("seconds", "rollout_s", "update_s")


def series(small: bool = False) -> dict[str, dict[int, Shape]]:
    """Return what grows (G, P, C, parameters) -> its value at each point -> shape. `small`: to try the command."""
    if small:
        base = SHAPES["tiny"]
        return {"G": {g: replace(base, samples=g) for g in (2, 4)}}
    return {
        "G": {g: replace(BASE, samples=g) for g in (4, 8, 16, 32)},
        "P": {p: replace(BASE, prompt=p) for p in (32, 64, 128, 256)},
        "C": {c: replace(BASE, completion=c) for c in (32, 64, 128, 256)},
        "parameters": {model.parameters: replace(BASE, model=model) for model in (M1, M8, M31)},
    }


def name(shape: Shape) -> str:
    """Return a name that is short and unique among the points."""
    return f"{shape.model.parameters / 1e6:.0f}M G{shape.samples} P{shape.prompt} C{shape.completion}"
