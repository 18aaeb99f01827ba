"""Reward plugins: from a name in a recipe to a function whose arguments are known before anything trains.

A plugin is a plain function. Its argument names say what it wants: `completion`, `prompt`, `finish`, `answer`, any data
column, and of a sampled completion `completion_tokens`, `max_new_tokens` and `token_texts`. With `completions` or
`prompts` it is called once per batch and every argument is a list (TRL's convention).
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import importlib.util
import inspect
import math
import pkgutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

ENTRY_POINTS = "rlhf_pg.rewards"
SAMPLE_ARGUMENTS = ("completion", "prompt", "finish", "answer")
BATCH_ARGUMENTS = ("completions", "prompts")
TOKEN_ARGUMENTS = ("completion_tokens", "max_new_tokens", "token_texts")  # of either kind; only if named


@dataclass(frozen=True)
class Reward:
    """One reward function of a run: where it is, how it is called, what it counts."""

    name: str  # label in Score.parts
    fn: str  # as the recipe wrote it
    module: str  # absolute path of a file, or an importable module name
    function: str  # attribute of that module
    weight: float = 1.0
    timeout_s: float = 10.0  # wall seconds per sample; per batch if batched
    batched: bool = False
    is_async: bool = False
    arguments: tuple[str, ...] = ()  # must be given
    optional: tuple[str, ...] = ()  # given when the data has them
    takes_rest: bool = False  # **kwargs: gets every column
    on_limit: float | None = None  # reward of a sample that exhausts time or memory; None: excluded


def shipped() -> list[str]:
    """Names of the shipped reward functions: the files of the `reward_fns` package."""
    return sorted(m.name for m in pkgutil.iter_modules(importlib.import_module("reward_fns").__path__))


def resolve(fn: str, weight: float = 1.0, timeout_s: float = 10.0) -> Reward:
    """Find a reward function.

    `fn`: a shipped name, an entry point of group `rlhf_pg.rewards`, `file.py:function`, `pkg.mod:function` or
    `pkg.mod.function`. Without `:function` a file's function has the file's name. A function may carry attributes:
    `on_limit` (the reward of a completion that exhausts time or memory; without it such a sample is excluded),
    `limit_s` (an upper bound on `timeout_s`) and `setup` (called once in each worker, outside any time limit).
    Raises ValueError naming what is missing and the nearest name.
    """
    if not timeout_s > 0:
        raise ValueError(f"reward {fn!r}: timeout_s must be above 0, got {timeout_s}")
    if not math.isfinite(weight):
        raise ValueError(f"reward {fn!r}: weight must be a finite number, got {weight}")
    module, function = _locate(fn)
    found = _find(fn, module, function)
    return _describe(fn, module, function, found, weight, timeout_s)


def load(module: str, function: str) -> Callable[..., Any]:
    """The function itself; also used by the worker processes."""
    found: Any = _import(module)
    for part in function.split("."):
        found = getattr(found, part)
    return found


def check(reward: Reward, columns: set[str], *, tokens: bool = True) -> None:
    """Raise ValueError when the function asks for an argument that neither a sample nor the data has.

    `tokens` False: the samples are texts from a file, of which no tokens are known.
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
            f"available: {', '.join(available)}{_nearest(argument, available)}"
        )


def asks_for(reward: Reward, argument: str) -> bool:
    """Whether the function names the argument, with a default or without."""
    return argument in (*reward.arguments, *reward.optional)


def _locate(fn: str) -> tuple[str, str]:
    """(absolute path or module name, function name) for a spec."""
    head, _, function = fn.partition(":")
    if head.endswith(".py") or "/" in head:
        return _locate_file(fn, Path(head), function)
    if fn in shipped():
        return f"reward_fns.{fn}", fn
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
        f"no reward function {fn!r}: shipped are {', '.join(shipped())}{_nearest(fn, names)}; "
        "or give file.py:function, package.module:function"
    )


def _locate_file(fn: str, path: Path, function: str) -> tuple[str, str]:
    path = path.expanduser().absolute()
    if not path.is_file():
        beside = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise ValueError(f"reward {fn!r}: no file {path}{_nearest(path.name, beside)}")
    return str(path), function or path.stem


def _find(fn: str, module: str, function: str) -> Callable[..., Any]:
    try:
        space = _import(module)
    except Exception as error:
        raise ValueError(f"reward {fn!r}: {module} cannot be loaded: {type(error).__name__}: {error}") from error
    try:
        found = load(module, function)
    except AttributeError as error:
        names = [n for n, v in vars(space).items() if callable(v) and not n.startswith("_")]
        listed = f"; it has {', '.join(names)}" if names else ""
        raise ValueError(
            f"reward {fn!r}: no function {function!r} in {module}{_nearest(function, names)}{listed}"
        ) from error
    if not callable(found):
        raise ValueError(f"reward {fn!r}: {function} in {module} is a {type(found).__name__}, not a function")
    return found


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
    sys.modules[name] = loaded
    sys.path.insert(0, str(Path(module).parent))  # as `python file.py` would, so that it may import its neighbours
    try:
        spec.loader.exec_module(loaded)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(str(Path(module).parent))
    return loaded


def _describe(fn: str, module: str, function: str, found: Any, weight: float, timeout_s: float) -> Reward:
    try:
        parameters = list(inspect.signature(found).parameters.values())
    except (TypeError, ValueError) as error:
        raise ValueError(f"reward {fn!r}: its arguments cannot be read: {error}") from error
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if any(p.kind is p.POSITIONAL_ONLY and p.default is p.empty for p in parameters):
        raise ValueError(f"reward {fn!r}: arguments are passed by name, so none may be positional-only ('/')")
    names = {p.name for p in named}
    batched = bool(names & set(BATCH_ARGUMENTS))
    mixed = names & {"completion", "prompt"}
    if batched and mixed:
        raise ValueError(f"reward {fn!r} mixes per-sample {sorted(mixed)} and per-batch arguments: use one kind")
    limit = getattr(found, "limit_s", None)
    return Reward(
        name=Path(module).stem if function == "reward" and module.endswith(".py") else function.rpartition(".")[2],
        fn=fn,
        module=module,
        function=function,
        weight=weight,
        timeout_s=timeout_s if limit is None else min(timeout_s, limit),
        batched=batched,
        is_async=inspect.iscoroutinefunction(found) or inspect.iscoroutinefunction(getattr(found, "__call__", None)),  # noqa: B004
        arguments=tuple(p.name for p in named if p.default is p.empty),
        optional=tuple(p.name for p in named if p.default is not p.empty),
        takes_rest=any(p.kind is p.VAR_KEYWORD for p in parameters),
        on_limit=getattr(found, "on_limit", None),
    )


def _nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
