"""The process that runs reward functions. Started by file path, so that importing torch is never needed.

Protocol, one JSON object a line. In: {"path", "memory_mb", "rewards"} once, then jobs {"reward": number, "calls":
[[index, arguments], ...]}. Out: {"ready": null} or {"failed": text}, then one reply per call: {"index": i} with one of
"value", "error" (a fault of the function) or "limit" (time or memory ran out). Replies travel together, every few
milliseconds; the index of the call in progress is in the file `progress`, so that a killed call can be named.
A function's own prints go to the log of the process, never into the protocol.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

FLUSH_S = 0.004
GRACE_S = 5.0  # should the parent be gone or busy, the kernel ends a call this long after its limit


def main() -> None:
    replies = os.dup(1)
    requests = os.fdopen(os.dup(0), "r", encoding="ascii")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    hello = json.loads(requests.readline())
    sys.path[:] = hello["path"]
    functions = _load(hello, replies)
    progress = int(sys.argv[1])
    for line in requests:
        job = json.loads(line)
        reward, function = hello["rewards"][job["reward"]], functions[job["reward"]]
        if reward["is_async"] and not reward["batched"]:
            signal.setitimer(signal.ITIMER_REAL, reward["timeout_s"] + GRACE_S)
            asyncio.run(_concurrently(job["calls"], reward["timeout_s"], function, replies))
        else:
            _in_turn(job["calls"], reward, function, replies, progress)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _load(hello: dict[str, Any], replies: int) -> list[Callable[..., Any]]:
    limit = hello["memory_mb"] * 1024 * 1024
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    from rlhf_pg.rewards import plugin

    try:
        functions = [plugin.load(r["module"], r["function"]) for r in hello["rewards"]]
        for function in functions:
            getattr(function, "setup", lambda: None)()
    except BaseException as error:
        _reply(replies, {"failed": _text(error)})
        sys.exit(1)
    _reply(replies, {"ready": None})
    return functions


def _in_turn(
    calls: list[Any], reward: dict[str, Any], function: Callable[..., Any], replies: int, progress: int
) -> None:
    done: list[dict[str, Any]] = []
    flushed = time.monotonic()
    for index, arguments in calls:
        if done and time.monotonic() - flushed > FLUSH_S:
            _reply(replies, *done)
            done, flushed = [], time.monotonic()
        os.pwrite(progress, b"%12d" % (index or 0), 0)
        signal.setitimer(signal.ITIMER_REAL, reward["timeout_s"] + GRACE_S)
        done.append({"index": index, **_call(function, arguments, reward["is_async"])})
        signal.setitimer(signal.ITIMER_REAL, 0)  # a reply may have to wait until the parent reads
    _reply(replies, *done)


def _call(function: Callable[..., Any], arguments: dict[str, Any], is_async: bool) -> dict[str, Any]:
    try:
        value = function(**arguments)
        return {"value": _plain(asyncio.run(value) if is_async else value)}
    except Exception as error:
        return _failure(error)


async def _concurrently(calls: list[Any], limit: float, function: Callable[..., Any], replies: int) -> None:
    async def one(index: int, arguments: dict[str, Any]) -> None:
        try:
            reply = {"value": _plain(await asyncio.wait_for(function(**arguments), limit))}
        except TimeoutError:
            reply = {"limit": f"no answer within {limit:g} s"}
        except Exception as error:
            reply = _failure(error)
        _reply(replies, {"index": index, **reply})

    await asyncio.gather(*(one(index, arguments) for index, arguments in calls))


def _failure(error: Exception) -> dict[str, Any]:
    return {"limit" if isinstance(error, MemoryError | RecursionError) else "error": _text(error)}


def _plain(value: Any) -> Any:
    """JSON for what a function returned: numpy and torch scalars and arrays become numbers and lists."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"returned a {type(value).__name__}, not a number, None, a dict of numbers or a list of them")


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:500]


def _reply(replies: int, *messages: dict[str, Any]) -> None:
    data = "".join(json.dumps(m) + "\n" for m in messages).encode("ascii")
    while data:
        data = data[os.write(replies, data) :]


if __name__ == "__main__":
    main()
