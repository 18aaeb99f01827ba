"""What can be called as a reward: functions (also `async`), instances with `__call__`, bound methods, `partial`."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any


def fault(name: str, function: Any, owner: Any) -> str:
    """Return why a module's attribute cannot be called as a reward and what to do, "" if it can. `owner`: the object of
    which `name` is an attribute."""
    if inspect.isclass(function):
        instance = re.sub(r"(?<!^)(?=[A-Z])", "_", function.__name__.strip("_")).lower()
        method = "" if any("__call__" in vars(c) for c in function.__mro__) else "give it a method __call__, "
        return f"is a class: {method}write `{instance} = {function.__name__}()` below it and name {instance} instead"
    if not callable(function):
        return f"is a {type(function).__name__}, not a function"
    if inspect.isclass(owner) and inspect.isfunction(inspect.getattr_static(owner, name.rpartition(".")[2], None)):
        instance = owner.__name__.lower()
        return (
            f"is a method of the class {owner.__name__} without an instance: write `{instance} = {owner.__name__}()` "
            f"below the class and name {instance}.{name.rpartition('.')[2]}"
        )
    if any(inspect.isgeneratorfunction(f) or inspect.isasyncgenfunction(f) for f in layers(function)):
        return "is a generator: return the reward, or the list of a batch's rewards, instead of yielding it"
    kinds = {p.kind for p in parameters_of(function)}
    if inspect.Parameter.VAR_POSITIONAL in kinds <= {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}:
        return (
            "takes (*args, **kwargs), so the names of its arguments are hidden, perhaps by a decorator: put "
            "@functools.wraps(function) on the function that the decorator returns"
        )
    return ""


def layers(function: Any) -> Iterator[Any]:
    """Yield the function, what it wraps (`partial`, a bound method) and the `__call__` of an instance."""
    while True:
        yield function
        if isinstance(function, functools.partial):
            function = function.func
        elif inspect.ismethod(function):
            function = function.__func__
        elif not inspect.isfunction(function) and inspect.ismethod(getattr(function, "__call__", None)):  # noqa: B004
            function = function.__call__
        else:
            return


def parameters_of(function: Any) -> list[inspect.Parameter]:
    """Return the parameters of anything callable. Raises ValueError where Python cannot tell them."""
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as error:
        raise ValueError(f"its arguments cannot be read: {error}") from error


def attribute(function: Callable[..., Any], name: str) -> Any:
    """Return an attribute that changes how a function is run, also of the function within a `partial`; else None."""
    while isinstance(function, functools.partial) and not hasattr(function, name):
        function = function.func
    return getattr(function, name, None)
