"""The worker process that runs reward functions. Started by file path, so that it never needs to import torch.

Protocol: one JSON object per line. The parent sends {"path", "rewards"} once and then jobs,
{"reward": number, "calls": [[index, arguments], ...]}, whose arguments are JSON as `values` makes it. The worker sends
{"ready": null}, or {"failed": text, "reward": number, "memory": whether that ran out}, once and then a reply per call:
{"index": i} with "value", "error" (the function failed) or "limit" (time ran out, or memory: then "memory" is true).
Replies are written every few milliseconds, several at a time. The index of the call in progress is in the file
`progress`, so that the parent can name the call in which a killed worker was.
What a function prints goes to the log of the process, never into the protocol.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import inspect
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

FLUSH_S = 0.004
GRACE_S = 5.0  # if the parent is gone or busy, the kernel ends a call this long after its limit


class Function(NamedTuple):
    """A reward function, its fixed arguments bound, and the file that it is in."""

    call: Callable[..., Any]
    file: str | None


def main() -> None:
    replies = os.dup(1)
    requests = os.fdopen(os.dup(0), "r", encoding="ascii")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    settings = json.loads(requests.readline())
    sys.path[:] = settings["path"]
    rewards = settings["rewards"]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _limit_memory(sum(r["memory_mb"] for r in rewards), at_most=True)
    functions = _load(rewards, replies)
    progress = int(sys.argv[1])
    from rlhf_pg.rewards.values import from_json

    for line in requests:
        job = json.loads(line, object_hook=from_json)
        reward, function = rewards[job["reward"]], functions[job["reward"]]
        _limit_memory(reward["memory_mb"])
        if reward["is_async"] and not reward["batched"]:
            signal.setitimer(signal.ITIMER_REAL, reward["timeout_s"] + GRACE_S)
            asyncio.run(_call_together(job["calls"], reward["timeout_s"], function, replies))
        else:
            _call_in_turn(job["calls"], reward, function, replies, progress)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _limit_memory(megabytes: int, at_most: bool = False) -> None:
    """Let the process map so much more memory than it has now; `at_most`: and never more, whatever comes later."""
    with open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    limit, most = mapped + megabytes * 1024 * 1024, resource.getrlimit(resource.RLIMIT_AS)[1]
    if most != resource.RLIM_INFINITY:
        limit = min(limit, most)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit if at_most else most))


def _load(rewards: list[dict[str, Any]], replies: int) -> list[Function]:
    """Import the functions and run their `setup`, each under its limit. Exits after saying why when one fails."""
    from rlhf_pg.rewards import callables, plugin

    functions = []
    for number, reward in enumerate(rewards):
        _limit_memory(reward["memory_mb"])
        try:
            function = plugin.load(reward["module"], reward["function"])
            (callables.attribute(function, "setup") or (lambda: None))()
            call = functools.partial(function, **reward["args"]) if reward["args"] else function
            functions.append(Function(call, plugin.file_of(reward["module"])))
        except BaseException as error:
            text = _message(error, plugin.file_of(reward["module"]))
            _send(replies, {"failed": text, "reward": number, "memory": _is_out_of_memory(error)})
            sys.exit(1)
    _send(replies, {"ready": None})
    return functions


def _call_in_turn(calls: list[Any], reward: dict[str, Any], function: Function, replies: int, progress: int) -> None:
    unsent: list[dict[str, Any]] = []
    sent_at = time.monotonic()
    for index, arguments in calls:
        if unsent and time.monotonic() - sent_at > FLUSH_S:
            _send(replies, *unsent)
            unsent, sent_at = [], time.monotonic()
        os.pwrite(progress, b"%12d" % (index or 0), 0)
        signal.setitimer(signal.ITIMER_REAL, reward["timeout_s"] + GRACE_S)
        unsent.append({"index": index, **_call(function, arguments)})
        signal.setitimer(signal.ITIMER_REAL, 0)  # before sending, which may have to wait until the parent reads
    _send(replies, *unsent)


def _call(function: Function, arguments: dict[str, Any]) -> dict[str, Any]:
    try:
        value = function.call(**arguments)
        return {"value": _json_value(asyncio.run(_wait(value)) if inspect.isawaitable(value) else value)}
    except Exception as error:
        return _failure(error, function.file)


async def _wait(value: Awaitable[Any]) -> Any:
    return await value


async def _call_together(calls: list[Any], limit: float, function: Function, replies: int) -> None:
    async def call(index: int, arguments: dict[str, Any]) -> None:
        try:
            reply = {"value": _json_value(await asyncio.wait_for(function.call(**arguments), limit))}
        except TimeoutError:
            reply = {"limit": f"no answer within {limit:g} s"}
        except Exception as error:
            reply = _failure(error, function.file)
        _send(replies, {"index": index, **reply})

    await asyncio.gather(*(call(index, arguments) for index, arguments in calls))


def _failure(error: Exception, file: str | None) -> dict[str, Any]:
    if _is_out_of_memory(error):
        return {"limit": _message(error, file), "memory": True}
    return {"limit" if isinstance(error, RecursionError) else "error": _message(error, file)}


def _is_out_of_memory(error: BaseException) -> bool:
    """Return whether this is how Python or a library says that it could get no memory, or no stack for a thread."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    text = str(error).lower()
    return any(t in text for t in ("allocate memory", "bad_alloc", "start new thread", "failed to map segment"))


def _json_value(value: Any) -> Any:
    """Convert what a function returned to JSON: numpy and torch scalars and arrays become numbers and lists."""
    if isinstance(value, dict):
        return {str(k): _json_value(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(v) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"returned a {type(value).__name__}, not a number, None, a dict of numbers or a list of them")


def _message(error: BaseException, file: str | None) -> str:
    """Return the line that raised, of a reward in `file`, and what."""
    from rlhf_pg.rewards.raising_line import raising_line

    return f"{raising_line(error, file)}{type(error).__name__}: {error}"[:500].removesuffix(": ")


def _send(replies: int, *messages: dict[str, Any]) -> None:
    data = "".join(json.dumps(m) + "\n" for m in messages).encode("ascii")
    while data:
        data = data[os.write(replies, data) :]


if __name__ == "__main__":
    main()
