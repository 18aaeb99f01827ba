"""Reward plugins: finds the function that a recipe names and reads its arguments before anything trains.

A plugin is a plain function. The names of its arguments say what it is called with: `completion`, `prompt`, `finish`,
`answer`, any data column, and for a sampled completion `completion_tokens`, `max_new_tokens` and `token_texts`. With
`completions` or `prompts` it is called once per batch and every argument is a list (TRL's convention).
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import json
import math
import operator
import pkgutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from rlhf_pg.names import STATISTICS, nearest
from rlhf_pg.rewards import callables
from rlhf_pg.rewards.raising_line import raising_line

ENTRY_POINTS = "rlhf_pg.rewards"
SHIPPED = "rlhf_pg.reward_fns"  # reward_fns/ of the project, which is a part of the package when installed
SAMPLE_ARGUMENTS = ("completion", "prompt", "finish", "answer")
BATCH_ARGUMENTS = ("completions", "prompts")
TOKEN_ARGUMENTS = ("completion_tokens", "max_new_tokens", "token_texts")  # of both kinds; never part of **kwargs
CALLED_WITH = (*SAMPLE_ARGUMENTS, *BATCH_ARGUMENTS, *TOKEN_ARGUMENTS)  # what no recipe can fix


@dataclass(frozen=True)
class Reward:
    """One reward function of a run: where it is defined, how it is called, its weight."""

    name: str  # label in Score.parts
    fn: str  # as the recipe wrote it
    module: str  # absolute path of a file, or an importable module name
    function: str  # attribute of that module
    weight: float = 1.0
    timeout_s: float = 10.0  # wall seconds per sample; per batch if batched
    batched: bool = False
    is_async: bool = False
    arguments: tuple[str, ...] = ()  # without a default
    optional: tuple[str, ...] = ()  # with a default; passed when the sample has them
    takes_rest: bool = False  # **kwargs: gets every column
    on_limit: float | None = None  # reward of a sample that exhausts time or memory; None: excluded
    memory_mb: int = 2048  # that a worker may take for this function, beyond what it had
    option: str = "{}"  # how the user writes a setting, for messages: "rewards.0.{}"
    args: Mapping[str, Any] = field(default_factory=dict)  # the same in every call, in place of a column of that name

    def raise_option(self, name: str) -> str:
        """Return what to do where a limit is too low: "raise rewards.0.memory_mb", or "raise --memory-mb"."""
        return f"raise {self.option.format(name.replace('_', '-') if self.option.startswith('--') else name)}"

    def argument_option(self, name: str) -> str:
        """Return how the user gives an argument a value: "rewards.0.args.scale", or "--args scale"."""
        return self.option.format("args") + (" " if self.option.startswith("--") else ".") + name


def shipped() -> list[str]:
    """Return the names of the shipped reward functions, which are the files of reward_fns/."""
    return sorted(m.name for m in pkgutil.iter_modules(importlib.import_module(SHIPPED).__path__))


def resolve(
    fn: str,
    weight: float = 1.0,
    timeout_s: float = 10.0,
    memory_mb: int = 2048,
    option: str = "{}",
    *,
    args: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> Reward:
    """Return the reward function that `fn` names.

    `fn` is a shipped name, an entry point of group `rlhf_pg.rewards`, `file.py:function`, `pkg.mod:function` or
    `pkg.mod.function`; without `:function`, the function in a file has the file's name. A function may have attributes:
    `on_limit` (the reward of a completion that exhausts time or memory; without it such a sample is excluded),
    `limit_s` (an upper bound on `timeout_s`) and `setup` (called once in each worker, outside any time limit).
    `option` says how the user writes a setting of it, for messages: "rewards.0.{}". `args` are arguments that have the
    same value in every call; `name`: its label, by default the function's name.
    Raises ValueError naming what does not exist and the nearest name, for what cannot be called by argument names, and
    for `args` that the function does not take.
    """
    if not timeout_s > 0:
        raise ValueError(f"reward {fn!r}: timeout_s must be above 0, got {timeout_s}")
    if not math.isfinite(weight):
        raise ValueError(f"reward {fn!r}: weight must be a finite number, got {weight}")
    module, function = locate(fn)
    reward = _describe(fn, module, function, _load_or_explain(fn, module, function), weight, timeout_s)
    reward = replace(reward, memory_mb=memory_mb, option=option, name=name or reward.name)
    return _with_args(reward, args) if args else reward


def _with_args(reward: Reward, args: Mapping[str, Any]) -> Reward:
    """Return the reward with some arguments fixed. Raises ValueError for one that cannot be, by its option."""
    settings = [n for n in (*reward.arguments, *reward.optional) if n not in CALLED_WITH]
    for name, value in args.items():
        option = reward.argument_option(name)
        if name in CALLED_WITH:
            raise ValueError(f"{option}: comes with every sample, so it cannot be fixed; remove it")
        if name not in settings and not reward.takes_rest:
            listed = f"; it takes {', '.join(settings)}" if settings else "; it takes none but those of a sample"
            raise ValueError(
                f"{option}: reward {reward.fn!r} has no argument {name!r}{listed}{nearest(name, settings)}"
            )
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{option}: {error}, and it is sent to another process: give text, numbers, true, false, lists or "
                "sections of those"
            ) from error
    return replace(
        reward,
        args=dict(args),
        arguments=tuple(n for n in reward.arguments if n not in args),
        optional=tuple(n for n in reward.optional if n not in args),
    )


def require_distinct_names(rewards: Sequence[Reward]) -> None:
    """Raise ValueError where two functions would have one name in metrics."""
    seen: dict[str, Reward] = {}
    for reward in rewards:
        if reward.name in seen:
            raise ValueError(
                f"two reward functions are called {reward.name!r} ({seen[reward.name].fn} and {reward.fn}): give one "
                f"another name by {reward.option.format('name')}, or list it once"
            )
        seen[reward.name] = reward


def require_free_names(rewards: Sequence[Reward]) -> None:
    """Raise ValueError where a function would be logged under the name of a statistic, as reward/mean is."""
    for reward in rewards:
        if reward.name in STATISTICS:
            raise ValueError(
                f"reward {reward.fn!r}: reward/{reward.name} is a statistic of all rewards in the metrics: give the "
                f"function another name by {reward.option.format('name')}"
            )


def locate(fn: str) -> tuple[str, str]:
    """Return (absolute path or module name, function name) for what a recipe names, without importing it.

    Raises ValueError for a file that does not exist and for a name that nothing has.
    """
    head, _, function = fn.partition(":")
    if head.endswith(".py") or "/" in head:
        path = Path(head).expanduser().absolute()
        if not path.is_file():
            neighbours = [p.name for p in path.parent.glob("*.py")]
            raise ValueError(f"no file {head} in {Path.cwd()}{nearest(path.name, neighbours)}")
        return str(path), function or path.stem
    if fn in shipped():
        return f"{SHIPPED}.{fn}", fn
    entries = {e.name: e for e in importlib.metadata.entry_points(group=ENTRY_POINTS)}
    if fn in entries:
        return entries[fn].module, entries[fn].attr or fn
    if function:
        return head, function
    if "." in fn:
        module, _, function = fn.rpartition(".")
        return module, function
    names = [*shipped(), *entries]
    raise ValueError(
        f"no reward function {fn!r}: there are {', '.join(names)}{nearest(fn, names)}, "
        "or give file.py:function or package.module:function"
    )


def file_of(module: str) -> str | None:
    """Return the file of a module that `load` has imported; None for one without."""
    return module if module.endswith(".py") else getattr(sys.modules.get(module), "__file__", None)


def load(module: str, function: str) -> Callable[..., Any]:
    """Import the function, in the trainer or in a worker process. Raises AttributeError if the module has none."""
    return operator.attrgetter(function)(_import(module))


def check(reward: Reward, columns: set[str], *, tokens: bool = True) -> None:
    """Raise ValueError when the function needs an argument that neither a sample nor the data provides.

    `tokens` is False for texts from a file, whose tokens are unknown.
    """
    base = (*BATCH_ARGUMENTS, "finish", "answer") if reward.batched else SAMPLE_ARGUMENTS
    available = sorted({*base, *(TOKEN_ARGUMENTS if tokens else ()), *columns})
    for argument in reward.arguments:
        if argument in available:
            continue
        if argument in TOKEN_ARGUMENTS:
            raise ValueError(
                f"reward {reward.fn!r} asks for argument {argument!r}, which only a sampled completion has and a text "
                "in a file has not: try it in a run, or give the argument a default"
            )
        raise ValueError(
            f"reward {reward.fn!r} asks for argument {argument!r}, which the data does not have; "
            f"available: {', '.join(available)}{nearest(argument, available)}. Give the data a column "
            f"of that name, or the argument a value by {reward.argument_option(argument)}=..."
        )


def asks_for(reward: Reward, argument: str) -> bool:
    """Return whether the function names the argument, with a default or without."""
    return argument in (*reward.arguments, *reward.optional)


def _load_or_explain(fn: str, module: str, name: str) -> Callable[..., Any]:
    """Return the function. Raises ValueError saying what cannot be loaded and which functions the module has."""
    try:
        namespace = vars(_import(module))
    except Exception as error:
        file = module if module.endswith(".py") else None
        why = f"{raising_line(error, file)}{type(error).__name__}: {error}"
        raise ValueError(f"reward {fn!r}: {module} cannot be loaded: {why}") from error
    try:
        function = load(module, name)
    except AttributeError as error:
        names = [n for n, v in namespace.items() if callable(v) and not n.startswith("_")]
        listed = f"; it has {', '.join(names)}" if names else ""
        raise ValueError(f"reward {fn!r}: no function {name!r} in {module}{nearest(name, names)}{listed}") from error
    owner = operator.attrgetter(name.rpartition(".")[0])(_import(module)) if "." in name else None
    try:
        fault = callables.fault(name, function, owner)
    except ValueError as error:
        raise ValueError(f"reward {fn!r}: {error}") from error
    if fault:
        raise ValueError(f"reward {fn!r}: {name} in {module} {fault}")
    return function


def _import(module: str) -> ModuleType:
    if not module.endswith(".py"):
        return importlib.import_module(module)
    name = f"rlhf_pg_plugin_{abs(hash(module)):x}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, module)
    if spec is None or spec.loader is None:
        raise ImportError(f"{module} is not a Python file")
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded  # before it runs, as the import system does
    sys.path.insert(0, str(Path(module).parent))  # as `python file.py` would, so that it may import its neighbours
    try:
        spec.loader.exec_module(loaded)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(str(Path(module).parent))
    return loaded


def _describe(fn: str, module: str, name: str, function: Any, weight: float, timeout_s: float) -> Reward:
    """Read the arguments and attributes of the function. Raises ValueError for arguments that cannot be passed."""
    parameters = callables.parameters_of(function)
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if any(p.kind is p.POSITIONAL_ONLY and p.default is p.empty for p in parameters):
        raise ValueError(f"reward {fn!r}: arguments are passed by name, so none may be positional-only ('/')")
    names = {p.name for p in named}
    batched = bool(names & set(BATCH_ARGUMENTS))
    per_sample = names & {"completion", "prompt"}
    if batched and per_sample:
        raise ValueError(f"reward {fn!r} mixes per-sample {sorted(per_sample)} and per-batch arguments: use one kind")
    limit_s = callables.attribute(function, "limit_s")
    return Reward(
        name=Path(module).stem if name == "reward" and module.endswith(".py") else name.rpartition(".")[2],
        fn=fn,
        module=module,
        function=name,
        weight=weight,
        timeout_s=timeout_s if limit_s is None else min(timeout_s, limit_s),
        batched=batched,
        is_async=any(map(inspect.iscoroutinefunction, callables.layers(function))),
        arguments=tuple(p.name for p in named if p.default is p.empty),
        optional=tuple(p.name for p in named if p.default is not p.empty),
        takes_rest=any(p.kind is p.VAR_KEYWORD for p in parameters),
        on_limit=callables.attribute(function, "on_limit"),
    )
