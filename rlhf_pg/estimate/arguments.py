"""What `rlhf-pg plan` refuses. Imports no torch, so that a wrong argument fails at once."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_pg.estimate.layout import GPU_COUNTS


@dataclass(frozen=True)
class PlanOptions:
    """The options of the command line. None: not given."""

    gpu: str | None = None  # a card by name
    gpu_memory: float | None = None  # GiB
    gpus: tuple[int, ...] | None = None
    prompt_tokens: int | None = None
    tflops: float | None = None
    bandwidth: float | None = None  # GB/s
    mfu: float | None = None
    measure: bool = False
    json: bool = False


def checked(*, gpus: str | None = None, **values) -> PlanOptions:
    """Return the options of the command. Raises ValueError for one out of range, or two that contradict each other."""
    options = PlanOptions(gpus=None if gpus is None else tuple(map(_gpu_count, gpus.split(","))), **values)
    for name in ("gpu_memory", "tflops", "bandwidth", "mfu", "prompt_tokens"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise ValueError(f"--{name.replace('_', '-')} {value:g}: must be above 0")
    if options.mfu is not None and options.mfu > 1:
        raise ValueError(f"--mfu {options.mfu:g}: is a share of the device's FLOP/s, at most 1")
    if options.measure and (options.gpu or options.tflops or options.bandwidth):
        raise ValueError("--measure takes the rates of this machine: leave out --gpu, --tflops and --bandwidth")
    if (options.tflops is None) != (options.bandwidth is None) and options.gpu is None:
        raise ValueError("--tflops and --bandwidth go together: the update is bound by one, decoding by the other")
    return options


def _gpu_count(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise ValueError(f"--gpus {text}: whole numbers from 1, as in --gpus {','.join(map(str, GPU_COUNTS))}")
    return number
