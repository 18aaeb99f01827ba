"""What a device can do: the cards known by name, and this machine measured."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from rlhf_pg.estimate.layout import GIB
from rlhf_pg.names import nearest

SQUARE = 2048  # of the matrix product measured
ROWS = 32  # of the decode-like product
WEIGHTS = 256 * 2**20  # bytes it reads at a time, more than caches hold
MEASURED_S = 0.5
MFU_OF_A_CARD, MFU_OF_MEASURED = 0.25, 0.7  # share of FLOP/s that training reaches: of a data sheet's, of a product's
LAUNCH = 5e-6  # seconds an operation costs a GPU, however small


@dataclass(frozen=True)
class Device:
    """The memory and rates of one process's device. A rate of None is not known, and there is no time then."""

    name: str
    memory: int  # bytes
    flops: float | None = None  # a second, in the recipe's arithmetic
    bandwidth: float | None = None  # bytes a second, of its memory
    link: float = 32e9  # bytes a second to another device of the node
    mfu: float = MFU_OF_MEASURED  # share of `flops` that training reaches
    launch: float = 0.0  # seconds an operation costs at the least
    is_gpu: bool = False


@dataclass(frozen=True)
class Card:
    """A card's data sheet: dense rates, no sparsity."""

    memory: float  # GB
    bfloat16: float  # TFLOP/s
    float32: float  # TFLOP/s outside tensor cores: torch's default for float32 products
    bandwidth: float  # GB/s
    link: float  # GB/s to another card of the node, one way


CARDS = {
    "A10": Card(24, 125, 31.2, 600, 32),
    "A100": Card(80, 312, 19.5, 2039, 300),
    "A100-40": Card(40, 312, 19.5, 1555, 300),
    "B200": Card(180, 2250, 75, 7700, 900),
    "H100": Card(80, 989, 67, 3350, 450),
    "H200": Card(141, 989, 67, 4800, 450),
    "L4": Card(24, 121, 30.3, 300, 32),
    "L40S": Card(48, 362, 91.6, 864, 32),
    "RTX3090": Card(24, 71, 35.6, 936, 32),
    "RTX4090": Card(24, 165, 82.6, 1008, 32),
}


def named(name: str, dtype: str) -> Device:
    """Return a card by name. Raises ValueError naming the nearest."""
    key = name.upper().replace(" ", "").replace("_", "-")
    if key not in CARDS:
        raise ValueError(
            f"--gpu {name}: not known; known are {', '.join(CARDS)}{nearest(key, list(CARDS))}. For another "
            "card give --gpu-memory, --tflops and --bandwidth"
        )
    card = CARDS[key]
    rate = card.bfloat16 if dtype == "bfloat16" else card.float32
    return Device(
        key,
        memory=int(card.memory * 1e9),
        flops=rate * 1e12,
        bandwidth=card.bandwidth * 1e9,
        link=card.link * 1e9,
        mfu=MFU_OF_A_CARD,
        launch=LAUNCH,
        is_gpu=True,
    )


def this_card(dtype: str) -> Device | None:
    """Return this machine's first GPU with the rates of its data sheet; None where there is none that is known."""
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    name = properties.name.upper().replace(" ", "").replace("-", "")
    fitting = [key for key in CARDS if key.partition("-")[0] in name]
    key = min(fitting, key=lambda key: abs(CARDS[key].memory * 1e9 - properties.total_memory), default=None)
    return None if key is None else replace(named(key, dtype), memory=properties.total_memory)


def of_memory(gib: float) -> Device:
    """Return a GPU of which only the memory is known."""
    return Device(f"a GPU with {gib:g} GiB", int(gib * GIB), launch=LAUNCH, is_gpu=True)


def this_machine() -> Device:
    """Return the first GPU of this machine, or its CPU with all its memory; rates are not known."""
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        return Device(card.name, card.total_memory, launch=LAUNCH, is_gpu=True)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Device(f"this CPU, {torch.get_num_threads()} threads", memory)


def measured(device: Device, dtype: str) -> Device:
    """Return this machine's `device` with measured rates: FLOP/s of a large product, bandwidth of one with few rows,
    which is bound by reading weights."""
    options: Any = dict(device="cuda" if torch.cuda.is_available() else "cpu", dtype=getattr(torch, dtype))
    square = torch.randn(SQUARE, SQUARE, **options)
    rows = torch.randn(ROWS, SQUARE, **options)
    count = max(1, WEIGHTS // (SQUARE * SQUARE * square.element_size()))
    weights = torch.randn(count, SQUARE, SQUARE, **options)
    flops = 2 * SQUARE**3 / _seconds(lambda: square @ square)
    bandwidth = weights.numel() * weights.element_size() / _seconds(lambda: [rows @ weight for weight in weights])
    return replace(device, flops=flops, bandwidth=bandwidth, mfu=MFU_OF_MEASURED)


def _seconds(run: Callable[[], object]) -> float:
    """Return the seconds of one call, the fastest of those that fit into MEASURED_S."""
    run()
    fastest, started = float("inf"), time.perf_counter()
    while time.perf_counter() - started < MEASURED_S:
        begun = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        fastest = min(fastest, time.perf_counter() - begun)
    return fastest
