"""The worker process that runs reward functions. Started by file path, so that it never needs to import torch.

Protocol: one JSON object per line. The parent sends {"path", "memory_mb", "rewards"} once and then jobs,
{"reward": number, "calls": [[index, arguments], ...]}. The worker sends {"ready": null} or {"failed": text} once and
then one reply per call: {"index": i} with "value", "error" (the function failed) or "limit" (time or memory ran out).
Replies are written every few milliseconds, several at a time. The index of the call in progress is in the file
`progress`, so that the parent can name the call in which a killed worker was.
What a function prints goes to the log of the process, never into the protocol.
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
GRACE_S = 5.0  # if the parent is gone or busy, the kernel ends a call this long after its limit


def main() -> None:
    replies = os.dup(1)
    requests = os.fdopen(os.dup(0), "r", encoding="ascii")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    settings = json.loads(requests.readline())
    sys.path[:] = settings["path"]
    functions = _load(settings, replies)
    progress = int(sys.argv[1])
    for line in requests:
        job = json.loads(line)
        reward, function = settings["rewards"][job["reward"]], functions[job["reward"]]
        if reward["is_async"] and not reward["batched"]:
            signal.setitimer(signal.ITIMER_REAL, reward["timeout_s"] + GRACE_S)
            asyncio.run(_call_together(job["calls"], reward["timeout_s"], function, replies))
        else:
            _call_in_turn(job["calls"], reward, function, replies, progress)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _load(settings: dict[str, Any], replies: int) -> list[Callable[..., Any]]:
    """Import the functions and run their `setup`, under the memory limit. Exits after saying why when one fails."""
    limit = settings["memory_mb"] * 1024 * 1024
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    from rlhf_pg.rewards import plugin

    try:
        functions = [plugin.load(r["module"], r["function"]) for r in settings["rewards"]]
        for function in functions:
            getattr(function, "setup", lambda: None)()
    except BaseException as error:
        _send(replies, {"failed": _message(error)})
        sys.exit(1)
    _send(replies, {"ready": None})
    return functions


def _call_in_turn(
    calls: list[Any], reward: dict[str, Any], function: Callable[..., Any], replies: int, progress: int
) -> None:
    unsent: list[dict[str, Any]] = []
    sent_at = time.monotonic()
    for index, arguments in calls:
        if unsent and time.monotonic() - sent_at > FLUSH_S:
            _send(replies, *unsent)
            unsent, sent_at = [], time.monotonic()
        os.pwrite(progress, b"%12d" % (index or 0), 0)
        signal.setitimer(signal.ITIMER_REAL, reward["timeout_s"] + GRACE_S)
        unsent.append({"index": index, **_call(function, arguments, reward["is_async"])})
        signal.setitimer(signal.ITIMER_REAL, 0)  # before sending, which may have to wait until the parent reads
    _send(replies, *unsent)


def _call(function: Callable[..., Any], arguments: dict[str, Any], is_async: bool) -> dict[str, Any]:
    try:
        value = function(**arguments)
        return {"value": _json_value(asyncio.run(value) if is_async else value)}
    except Exception as error:
        return _failure(error)


async def _call_together(calls: list[Any], limit: float, function: Callable[..., Any], replies: int) -> None:
    async def call(index: int, arguments: dict[str, Any]) -> None:
        try:
            reply = {"value": _json_value(await asyncio.wait_for(function(**arguments), limit))}
        except TimeoutError:
            reply = {"limit": f"no answer within {limit:g} s"}
        except Exception as error:
            reply = _failure(error)
        _send(replies, {"index": index, **reply})

    await asyncio.gather(*(call(index, arguments) for index, arguments in calls))


def _failure(error: Exception) -> dict[str, Any]:
    return {"limit" if isinstance(error, MemoryError | RecursionError) else "error": _message(error)}


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


def _message(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:500]


def _send(replies: int, *messages: dict[str, Any]) -> None:
    data = "".join(json.dumps(m) + "\n" for m in messages).encode("ascii")
    while data:
        data = data[os.write(replies, data) :]


if __name__ == "__main__":
    main()
