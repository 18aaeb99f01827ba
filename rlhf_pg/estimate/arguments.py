"""What `rlhf-pg plan` refuses. Imports no torch, so that a wrong argument fails at once."""

from __future__ import annotations

from dataclasses import dataclass

LAYOUTS_OF = (1, 8, 64)  # GPUs


@dataclass(frozen=True)
class Wanted:
    """What the command line says. None: not given."""

    gpu: str | None = None  # a card by name
    gpu_memory: float | None = None  # GiB
    gpus: tuple[int, ...] | None = None
    prompt_tokens: int | None = None
    tflops: float | None = None
    bandwidth: float | None = None  # GB/s
    mfu: float | None = None
    measure: bool = False
    json: bool = False


def checked(*, gpus: str | None = None, **given) -> Wanted:
    """The options of the command, in range and not against each other. Raises ValueError."""
    numbers = None if gpus is None else tuple(_whole(part, "--gpus") for part in gpus.split(","))
    wanted = Wanted(gpus=numbers, **given)
    for name in ("gpu_memory", "tflops", "bandwidth", "mfu", "prompt_tokens"):
        value = getattr(wanted, name)
        if value is not None and not value > 0:
            raise ValueError(f"--{name.replace('_', '-')} {value:g}: must be above 0")
    if wanted.mfu is not None and wanted.mfu > 1:
        raise ValueError(f"--mfu {wanted.mfu:g}: is a share of the device's FLOP/s, at most 1")
    if wanted.measure and (wanted.gpu or wanted.tflops or wanted.bandwidth):
        raise ValueError("--measure takes the rates of this machine: leave out --gpu, --tflops and --bandwidth")
    if (wanted.tflops is None) != (wanted.bandwidth is None) and wanted.gpu is None:
        raise ValueError("--tflops and --bandwidth go together: the update is bound by one, decoding by the other")
    return wanted


def _whole(text: str, option: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise ValueError(f"{option} {text}: whole numbers from 1, as in {option} {','.join(map(str, LAYOUTS_OF))}")
    return number
