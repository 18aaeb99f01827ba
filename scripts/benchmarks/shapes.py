"""The models and shapes that are measured, and how many operations one update of them needs. Imports no torch.

Letters: N prompts, G samples per prompt, P prompt length, C completion length, V vocabulary, H hidden size.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Model:
    """A Qwen2-architecture model with random weights."""

    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool  # whether the head is the embedding

    @property
    def linears(self) -> list[tuple[int, int]]:
        """Return (inputs, outputs) of every linear map of one layer."""
        narrow = self.hidden * self.kv_heads // self.heads
        wide = [(self.hidden, self.hidden), (self.hidden, narrow), (self.hidden, narrow), (self.hidden, self.hidden)]
        return [*wide, *[(self.hidden, self.intermediate)] * 2, (self.intermediate, self.hidden)]

    @property
    def parameters(self) -> int:
        """Count all of them: matrices, the biases of queries, keys and values, norms, embedding and head."""
        matrices = sum(i * o for i, o in self.linears)
        biases = self.hidden + 2 * (self.hidden * self.kv_heads // self.heads)
        layer = matrices + biases + 2 * self.hidden
        return self.layers * layer + self.hidden + (1 if self.tied else 2) * self.vocabulary * self.hidden

    @property
    def name(self) -> str:
        """Return the name of its folder: all its numbers."""
        return "-".join(str(value) for value in asdict(self).values())


@dataclass(frozen=True)
class Shape:
    """The work of one step: N prompts of P tokens, G completions each of C tokens.

    `stops`: completions end by themselves, at 0.45 C in the mean; else none ends before C.
    """

    model: Model
    prompts: int
    samples: int
    prompt: int
    completion: int
    stops: bool = False

    @property
    def rows(self) -> int:
        return self.prompts * self.samples

    def record(self) -> dict[str, Any]:
        """Return it as JSON has it, for bench.json and the processes of contenders."""
        return asdict(self) | {"parameters": self.model.parameters}


M1 = Model(hidden=128, layers=5, intermediate=384, heads=4, kv_heads=2, vocabulary=99, tied=True)
M8 = Model(hidden=256, layers=8, intermediate=768, heads=4, kv_heads=2, vocabulary=4096, tied=False)
M31 = Model(hidden=512, layers=8, intermediate=1408, heads=8, kv_heads=2, vocabulary=8192, tied=False)
SMALL = Model(hidden=64, layers=1, intermediate=96, heads=2, kv_heads=1, vocabulary=99, tied=True)
LARGE_VOCABULARY = Model(hidden=256, layers=4, intermediate=768, heads=4, kv_heads=2, vocabulary=151_936, tied=True)

SHAPES = {
    "1M": Shape(M1, prompts=16, samples=8, prompt=16, completion=64),
    "31M P256": Shape(M31, prompts=4, samples=8, prompt=256, completion=32),
    "31M P32": Shape(M31, prompts=4, samples=8, prompt=32, completion=128),
    "31M varied": Shape(M31, prompts=4, samples=8, prompt=64, completion=128, stops=True),
    "tiny": Shape(SMALL, prompts=2, samples=2, prompt=4, completion=4),  # to try the command itself
}
USUAL = [name for name in SHAPES if name != "tiny"]
SCORING = Shape(LARGE_VOCABULARY, prompts=2, samples=8, prompt=64, completion=256)
SCORING_TINY = Shape(SMALL, prompts=2, samples=2, prompt=4, completion=4)


def shape_of(record: dict[str, Any]) -> Shape:
    """Return the shape that `Shape.record` wrote."""
    fields = {name: value for name, value in record.items() if name not in ("model", "parameters")}
    return Shape(Model(**record["model"]), **fields)


def update_flops(shape: Shape) -> int:
    """Count the multiplications and additions that an update needs, all completions C long.

    Each prompt is forwarded once per group and the last token of a completion not at all; the head sees scored
    positions only; attention is causal. A forward pass counts 1, its backward 2, the reference's forward 1.
    """
    model, rows = shape.model, shape.rows
    forwarded = shape.prompts * shape.prompt + rows * (shape.completion - 1)
    matrices = 2 * model.layers * sum(i * o for i, o in model.linears) * forwarded
    head = 2 * model.vocabulary * model.hidden * rows * shape.completion
    seen_by_prompt = shape.prompt * (shape.prompt + 1) // 2
    seen_by_completion = sum(shape.prompt + t + 1 for t in range(shape.completion - 1))
    seen = shape.prompts * seen_by_prompt + rows * seen_by_completion
    attention = 4 * model.layers * model.hidden * seen  # queries with keys, and probabilities with values
    return 4 * (matrices + head + attention)
