"""`rlhf-pg plan RECIPE`: memory and time of a recipe in every layout, from the model's configuration alone."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from rlhf_pg.commands.parsing import add_option, add_recipe_command, options
from rlhf_pg.estimate.layout import GPU_COUNTS


def add_parser(subcommands) -> None:
    """Add the command to the parser."""
    help = "how much memory and time it takes, on how many GPUs"
    parser = add_recipe_command(subcommands, "plan", run, help, "recipes/gsm8k_grpo.yaml --gpu H100")
    add_option(parser, "--gpu", metavar="NAME", help="plan for this card, as in H100; default: what is there")
    add_option(parser, "--gpu-memory", type=float, metavar="GIB", help="of one GPU")
    add_option(parser, "--gpus", metavar="N,N,..", help="how many; default: 1,8,64")
    add_option(parser, "--prompt-tokens", type=int, metavar="N", help="longest prompt; default: data.max_prompt_tokens")
    add_option(parser, "--tflops", type=float, metavar="X", help="of one device, in the recipe's arithmetic")
    add_option(parser, "--bandwidth", type=float, metavar="GB/S", help="of one device's memory")
    add_option(parser, "--mfu", type=float, metavar="SHARE", help="share of the FLOP/s that training reaches")
    add_option(parser, "--measure", action="store_true", help="take the rates of this machine, in a second or two")
    add_option(parser, "--json", action="store_true", help="print the same as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Check the options, read the recipe, print the plan. Returns the exit code."""
    from rlhf_pg import config

    values = {name: value for name, value in options(arguments).items() if name not in ("recipe", "overrides")}
    plan_options = checked(**values)
    recipe = config.load(arguments.recipe, arguments.overrides)
    from rlhf_pg.commands import run_plan

    return run_plan.run(recipe, plan_options)


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
