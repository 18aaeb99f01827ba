"""The source of a function of a script or notebook, as a file: what the processes that run rewards can load.

A function of an imported module goes by its dotted name. One of `__main__` has no name that another process could
import without running the script again, and pickles are not loaded here, so its source is taken, with all that it uses.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any

REMEDY = "put the function into a file and name it as in reward='my_rewards.py:{name}'"
ATTRIBUTES = ("on_limit", "limit_s", "setup")  # of a function, that say how it is run


def reference(function: Callable[..., Any]) -> tuple[str, str]:
    """Return how a recipe names the function, and the text of the file that must be there: ("mod:f", "") if none.

    The first of a pair with text is the function's name; the file is to be called so. Raises ValueError for what has no
    source, no name, or uses values that cannot be written down.
    """
    name = getattr(function, "__qualname__", "")
    module = getattr(function, "__module__", "__main__")
    if module != "__main__" and isinstance(function, FunctionType) and "<" not in name:
        return f"{module}:{name}", ""
    if not isinstance(function, FunctionType):
        kind = type(function).__name__
        raise ValueError(f"reward: an instance of {kind} cannot be handed to another process; write a function (def)")
    if name == "<lambda>":
        raise ValueError("reward: a lambda has no name to be logged under; write a function (def)")
    return function.__name__, source_of(function)


def source_of(function: FunctionType) -> str:
    """Return the text of a module that defines the function, after all that it uses of where it was defined."""
    capture = _Capture(function.__name__, function.__globals__)
    capture.define(function.__name__, function)
    for attribute in ATTRIBUTES:
        value = getattr(function, attribute, None)
        if isinstance(value, FunctionType):
            capture.define(value.__name__, value)
            capture.lines.append(f"{function.__name__}.{attribute} = {value.__name__}\n")
        elif value is not None:
            capture.lines.append(f"{function.__name__}.{attribute} = {value!r}\n")
    return "\n".join(["from __future__ import annotations\n", *capture.lines])


class _Capture:
    """Definitions in the order in which they need each other."""

    def __init__(self, reward: str, namespace: dict[str, Any]) -> None:
        self.reward, self.namespace = reward, namespace
        self.lines: list[str] = []
        self.seen: set[str] = set()

    def define(self, name: str, value: Any) -> None:
        """Add the lines that make `name` what it is here."""
        if name in self.seen:
            return
        self.seen.add(name)
        if isinstance(value, ModuleType):
            self.lines.append(f"import {value.__name__} as {name}\n")
        elif isinstance(value, FunctionType | type) and value.__module__ == "__main__":
            self._define_from_source(name, value)
        elif _is_importable(value):
            self.lines.append(f"from {value.__module__} import {value.__qualname__} as {name}\n")
        elif isinstance(value, re.Pattern):
            self.lines.append(f"import re as _re\n{name} = _re.compile({value.pattern!r}, {value.flags})\n")
        elif _is_literal(value):
            self.lines.append(f"{name} = {value!r}\n")
        else:
            raise ValueError(
                f"reward {self.reward!r} uses {name}, a {type(value).__name__}, which cannot be handed to the process "
                f"that runs it: make it inside the function, or {REMEDY.format(name=self.reward)}"
            )

    def _define_from_source(self, name: str, value: FunctionType | type) -> None:
        function: Any = inspect.unwrap(value) if isinstance(value, FunctionType) else None
        closed = function.__code__.co_freevars if function else ()
        if closed:
            raise ValueError(
                f"reward {self.reward!r}: {value.__name__} uses {', '.join(closed)} of the function that made it, "
                f"which cannot be handed to another process: {REMEDY.format(name=self.reward)}"
            )
        try:
            source = textwrap.dedent(inspect.getsource(value))
        except (OSError, TypeError) as error:
            raise ValueError(
                f"reward {self.reward!r}: the source of {value.__name__} is not to be had ({error}): "
                f"{REMEDY.format(name=self.reward)}"
            ) from error
        for used in sorted(_names(source) & self.namespace.keys()):
            self.define(used, self.namespace[used])
        self.lines.append(f"\n{source}")
        if name != value.__name__:
            self.lines.append(f"{name} = {value.__name__}\n")


def _names(source: str) -> set[str]:
    """Return the names that the source reads, those of annotations and decorators too."""
    nodes = ast.walk(ast.parse(source))
    return {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def _is_importable(value: Any) -> bool:
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    return isinstance(module, str) and module != "__main__" and isinstance(name, str) and name.isidentifier()


def _is_literal(value: Any) -> bool:
    try:
        return ast.literal_eval(repr(value)) == value
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return False
