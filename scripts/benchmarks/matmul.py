"""This machine's own rate of float32 matrix products, and the share of it that an update reaches."""

from __future__ import annotations

import time
from typing import Any

from benchmarks import summary
from benchmarks.shapes import Shape, update_flops

SQUARE = 2048
AT_LEAST_S = 0.2  # each size is multiplied again and again for so long
AT_ONCE = 16_384  # positions forwarded at once: the default of update.tokens_per_microbatch
Size = tuple[int, int, int]  # [m, k] times [k, n]


def sizes_of(shape: Shape) -> list[Size]:
    """Return a large square, then the products of one layer and of the head as an update's forward has them."""
    positions = min(AT_ONCE, shape.rows * max(1, shape.completion - 1))
    linears = [(positions, i, o) for i, o in shape.model.linears]
    return [(SQUARE, SQUARE, SQUARE), *linears, (positions, shape.model.hidden, shape.model.vocabulary)]


def rates(specification: dict[str, Any], port: Any) -> None:
    """Serve as a contender: `gflops` of torch.mm at each of the specification's `sizes`."""
    import torch  # here: the command reads the rest of this file

    pairs = [(torch.randn(m, k), torch.randn(k, n)) for m, k, n in specification["sizes"]]

    def rate(a: torch.Tensor, b: torch.Tensor) -> float:
        times, started = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - started) < AT_LEAST_S or not times:
            torch.mm(a, b)
            times += 1
        return times * 2 * a.shape[0] * a.shape[1] * b.shape[1] / elapsed / 1e9

    port.serve(lambda _: {"gflops": [rate(a, b) for a, b in pairs]})


def shares(shape: Shape, seconds: float, sizes: list[Size], rates: list[dict[str, float]]) -> dict[str, Any]:
    """Return the rate of an update that takes so many seconds, and its share of the square's and the own layers' rate.

    `rates`: of each size. The layers' rate is that of doing all products of a forward pass one after the other.
    """
    flops = update_flops(shape)
    reached = flops / seconds / 1e9
    medians = [rate["median"] for rate in rates]
    layers = len(shape.model.linears) * [shape.model.layers] + [1]
    amounts = [count * m * k * n for count, (m, k, n) in zip(layers, sizes[1:], strict=True)]
    layers_rate = summary.harmonic_rate(amounts, medians[1:])
    return {
        "flops": flops,
        "gflops": reached,
        "matmul": [{"size": size, "gflops": rate} for size, rate in zip(sizes, rates, strict=True)],
        "square_gflops": medians[0],
        "layers_gflops": layers_rate,
        "share_of_square": reached / medians[0],
        "share_of_layers": reached / layers_rate,
    }
