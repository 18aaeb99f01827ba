"""The `rlhf-pg` command: parse, load the recipe, then import what the command needs and run it.

Exit codes: 0 done, 1 the run failed, 2 wrong command line, recipe or input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_pg import __version__

FAILED, USAGE, INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. `argv` without the program name; default: the process's."""
    arguments = parser().parse_args(argv)
    if arguments.command is None:
        parser().print_help()
        return USAGE
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # plugins of the current directory, as under `python -m`
    try:
        return arguments.run(arguments) or 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        code = _exit_code(error)
        if code is None or arguments.debug:
            raise
        _complain(error)
        return code


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="rlhf-pg",
        description="Policy-gradient training of small language models on math.",
        epilog="example: rlhf-pg train recipes/quickstart.yaml run.seed=1",
    )
    top.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    top.set_defaults(command=None)
    commands = top.add_subparsers(metavar="COMMAND")
    _recipe_command(commands, "train", _train, "train by reinforcement learning", "recipes/quickstart.yaml run.seed=1")
    _recipe_command(commands, "sft", _sft, "fine-tune on worked solutions", "recipes/quickstart_sft.yaml sft.epochs=2")
    _recipe_command(
        commands, "eval", _eval, "measure greedy and pass@k on held-out problems", "R.yaml model.path=runs/r/model"
    )
    _recipe_command(commands, "check", _check, "preflight: is this run set up right?", "recipes/gsm8k_grpo.yaml")
    serve = _recipe_command(
        commands, "serve", _serve, "run a recipe's rollout engine as a server", "R.yaml rollout.server=runs/serve.json"
    )
    _optional(serve, "--host", metavar="ADDRESS", help="to listen on; default: 127.0.0.1, this machine only")
    _optional(serve, "--port", type=int, metavar="N", help="to listen on; default: any free one")
    _plan_command(commands)
    _variance_command(commands)
    report = _command(
        commands, "report", _report, "write report.html from run directories", "runs/a runs/b --out both.html"
    )
    report.add_argument("run_dirs", metavar="RUN_DIR", nargs="+", type=Path)
    report.add_argument("--out", type=Path, help="file to write; default: report.html in the first run directory")
    _rewards_commands(commands)
    return top


def _command(commands, name: str, run, help: str, example: str, path: str = "") -> argparse.ArgumentParser:
    words = f"{path}{name}"
    made = commands.add_parser(
        name,
        help=help,
        description=help,
        epilog=f"example:\n  rlhf-pg {words} {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--debug", action="store_true", help="show the traceback of an error")
    made.set_defaults(run=run, command=words)
    return made


def _recipe_command(commands, name: str, run, help: str, example: str) -> argparse.ArgumentParser:
    made = _command(commands, name, run, help, example)
    made.add_argument("recipe", metavar="RECIPE", type=Path, help="YAML file; docs/recipes.md lists its keys")
    made.add_argument("overrides", metavar="key=value", nargs="*", help="overrides, as in optimizer.lr=1e-5")
    return made


def _plan_command(commands) -> None:
    made = _recipe_command(
        commands,
        "plan",
        _plan,
        "how much memory and time it takes, on how many GPUs",
        "recipes/gsm8k_grpo.yaml --gpu H100",
    )
    _optional(made, "--gpu", metavar="NAME", help="plan for this card, as in H100; default: what is there")
    _optional(made, "--gpu-memory", type=float, metavar="GIB", help="of one GPU")
    _optional(made, "--gpus", metavar="N,N,..", help="how many; default: 1,8,64")
    _optional(made, "--prompt-tokens", type=int, metavar="N", help="longest prompt; default: data.max_prompt_tokens")
    _optional(made, "--tflops", type=float, metavar="X", help="of one device, in the recipe's arithmetic")
    _optional(made, "--bandwidth", type=float, metavar="GB/S", help="of one device's memory")
    _optional(made, "--mfu", type=float, metavar="SHARE", help="share of the FLOP/s that training reaches")
    _optional(made, "--measure", action="store_true", help="take the rates of this machine, in a second or two")
    _optional(made, "--json", action="store_true", help="print the same as JSON")


def _variance_command(commands) -> None:
    made = _recipe_command(
        commands,
        "variance",
        _variance,
        "measure the noise of each gradient estimator",
        "recipes/toy_ppo.yaml --after 5",
    )
    _optional(made, "--after", type=int, metavar="N", help="train so many steps first, in memory; default: 10")
    _optional(made, "--groups", type=int, metavar="N", help="groups of samples to measure on; default: 256")
    _optional(
        made, "--out", type=Path, metavar="FOLDER", help="for json and png; default: variance_<run> beside run.dir"
    )


def _rewards_commands(commands) -> None:
    rewards = commands.add_parser("rewards", help="try reward functions on data").add_subparsers(
        metavar="COMMAND", required=True
    )
    check = _command(
        rewards,
        "check",
        _rewards_check,
        "does a reward function run on this data?",
        "math_answer --data F.jsonl",
        "rewards ",
    )
    score = _command(
        rewards,
        "score",
        _rewards_score,
        "score completions of a file, one line per row",
        "gsm8k --data F.jsonl --completion output --answer answer --out scored.jsonl",
        "rewards ",
    )
    for made in (check, score):
        made.add_argument("fn", metavar="FN", help="shipped name, file.py:function or dotted.path:function")
        _optional(made, "--prompt", metavar="COLUMN", help="column with the problem; default: prompt")
        _optional(made, "--timeout-s", type=float, metavar="S", help="seconds a sample may take; default: 10")
    _optional(check, "--data", type=Path, help="rows: .jsonl; without it, only say what the function asks for")
    _optional(check, "--answer", metavar="COLUMN", help="column with the gold answer; default: answer")
    _optional(check, "--completion", metavar="COLUMN", help="column with the text to score; default: gold answers")
    _optional(check, "--rows", type=int, metavar="N", help="use the first N rows; default: 8")
    score.add_argument("--data", type=Path, required=True, help="rows: .jsonl")
    score.add_argument("--completion", required=True, metavar="COLUMN", help="column with the text to score")
    score.add_argument("--answer", required=True, metavar="COLUMN", help="column with the gold answer")
    score.add_argument("--out", type=Path, required=True, help="a line per row: score, outcome")
    _optional(score, "--workers", type=int, metavar="N", help="processes that score; default: 2")
    _optional(score, "--memory-mb", type=int, metavar="MB", help="memory of each; default: 2048")


def _optional(made: argparse.ArgumentParser, name: str, **options) -> None:
    """An option that is passed on only when given: its default is the called function's."""
    made.add_argument(name, default=argparse.SUPPRESS, **options)


def _train(arguments: argparse.Namespace) -> int:
    from rlhf_pg import config

    recipe = config.load(arguments.recipe, arguments.overrides)
    from rlhf_pg.train.loop import train

    return train(recipe)


def _sft(arguments: argparse.Namespace) -> int:
    from rlhf_pg import config

    recipe = config.load(arguments.recipe, arguments.overrides, config.SftRecipe)
    from rlhf_pg.train.sft import sft

    return sft(recipe)


def _eval(arguments: argparse.Namespace) -> int:
    from rlhf_pg import config

    recipe = config.load(arguments.recipe, arguments.overrides)
    if recipe.data.eval is None:
        raise config.RecipeError(str(arguments.recipe), ["data.eval: required by `rlhf-pg eval`, but not given"])
    from rlhf_pg.train import evaluate

    return evaluate.run(recipe)


def _check(arguments: argparse.Namespace) -> int:
    from rlhf_pg import config

    recipe = config.load(arguments.recipe, arguments.overrides)
    from rlhf_pg.preflight import checks

    return checks.run(recipe)


def _serve(arguments: argparse.Namespace) -> int:
    from rlhf_pg import config

    recipe = config.load(arguments.recipe, arguments.overrides)
    from rlhf_pg.train.serve import serve

    given = _given(arguments)
    return serve(recipe, **{name: given[name] for name in ("host", "port") if name in given})


def _plan(arguments: argparse.Namespace) -> int:
    from rlhf_pg import config
    from rlhf_pg.estimate.arguments import checked

    given = _given(arguments)
    wanted = checked(**{name: value for name, value in given.items() if name not in ("recipe", "overrides")})
    recipe = config.load(arguments.recipe, arguments.overrides)
    from rlhf_pg.estimate import command as plan_command

    return plan_command.run(recipe, wanted)


def _variance(arguments: argparse.Namespace) -> int:
    from rlhf_pg import config

    recipe = config.load(arguments.recipe, arguments.overrides)
    from rlhf_pg.train.variance_arguments import checked

    given = _given(arguments)
    settled = checked(recipe, **{name: given[name] for name in ("after", "groups", "out") if name in given})
    from rlhf_pg.train import variance

    return variance.run(recipe, *settled)


def _report(arguments: argparse.Namespace) -> int:
    from rlhf_pg.report import write_report as report

    print(report.write(arguments.run_dirs, arguments.out))
    return 0


def _rewards_check(arguments: argparse.Namespace) -> int:
    from rlhf_pg.rewards import command

    return command.check(**_given(arguments))


def _rewards_score(arguments: argparse.Namespace) -> int:
    from rlhf_pg.rewards import command

    return command.score(**_given(arguments))


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name, value in vars(arguments).items() if name not in ("command", "run", "debug")}


def _exit_code(error: Exception) -> int | None:
    """The exit code of an error a person can act on; None for one that is ours to mend."""
    from rlhf_pg.errors import RunError

    if isinstance(error, RunError | FloatingPointError) or _is_out_of_memory(error):
        return FAILED
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError | FileExistsError | ValueError):
        return USAGE
    return FAILED if isinstance(error, OSError) else None


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # torch's, without importing it


def _complain(error: Exception) -> None:
    """One paragraph on stderr. Under a launcher, a recipe's error is every process's: the first says it."""
    from rlhf_pg.errors import RecipeError

    rank = os.environ.get("RANK", "0")
    if isinstance(error, RecipeError):
        if rank == "0":
            print(error, file=sys.stderr)
        return
    who = "rlhf-pg" if os.environ.get("WORLD_SIZE", "1") == "1" else f"rlhf-pg (rank {rank})"
    hint = " Lower update.tokens_per_microbatch or rollout.slots." if _is_out_of_memory(error) else ""
    text = f"{who}: {str(error) or type(error).__name__}{hint} (--debug shows the traceback)"
    print(textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False), file=sys.stderr)
