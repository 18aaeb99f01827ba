"""`rlhf-pg plan RECIPE`: memory and time of a recipe in every layout, from the model's configuration alone."""

from __future__ import annotations

import argparse

from rlhf_pg.commands.parsing import add_option, add_recipe_command, load_recipe, options
from rlhf_pg.commands.plan_options import checked


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
    values = {name: value for name, value in options(arguments).items() if name not in ("recipe", "overrides")}
    plan_options = checked(**values)
    recipe = load_recipe(arguments, data=False)
    from rlhf_pg.commands import run_plan

    return run_plan.run(recipe, plan_options)
