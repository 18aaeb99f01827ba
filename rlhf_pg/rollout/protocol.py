"""What travels between a trainer and its engine's process: JSON headers, and tensors as raw bytes. No pickle."""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from rlhf_pg.rollout.engine import Finished
from rlhf_pg.types import Completion, Prompt, Sampling

RAISED = {"ValueError": ValueError, "FloatingPointError": FloatingPointError}  # as the engine itself would have
DTYPES = {"int64": torch.int64, "float32": torch.float32}
Row = tuple[tuple[int, int], Completion]  # (index of the prompt, of its sample), what was sampled


class Cancelled(BaseException):
    """What is being sampled is no longer wanted."""


class Gone(BaseException):
    """The trainer is: whatever an engine does with exceptions, it must not survive this one."""


def send(connection: Connection, header: dict[str, Any], **tensors: Tensor) -> None:
    """One message: a header and flat CPU tensors, int64 or float32. Raises OSError when the other end is gone."""
    kinds = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()}
    connection.send_bytes(json.dumps({"header": header, "tensors": kinds}).encode())
    for tensor in tensors.values():
        connection.send_bytes(tensor.contiguous().numpy().tobytes())


def receive(connection: Connection) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The next message. Raises EOFError or OSError when the other end is gone."""
    message = json.loads(connection.recv_bytes())
    tensors = {
        name: torch.frombuffer(bytearray(connection.recv_bytes()), dtype=DTYPES[kind])
        for name, kind in message["tensors"].items()
    }
    return message["header"], tensors


def pack(groups: Sequence[Sequence[Completion]]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Groups of completions as (JSON, flat tensors), from which `unpack` makes them again."""
    rows = [completion for group in groups for completion in group]
    header = {
        "groups": [len(group) for group in groups],
        "lengths": [len(row.tokens) for row in rows],
        "finish": [row.finish for row in rows],
        "versions": [row.version for row in rows],
    }
    return header, {"tokens": torch.cat([r.tokens for r in rows]), "logp": torch.cat([r.logp for r in rows])}


def unpack(header: dict[str, Any], tensors: dict[str, Tensor]) -> list[list[Completion]]:
    """What `pack` was given."""
    pieces = (tensors[name].split(header["lengths"]) for name in ("tokens", "logp"))
    rows = zip(*pieces, header["finish"], header["versions"], strict=True)
    completions = (Completion(t.clone(), logp.clone(), finish, version) for t, logp, finish, version in rows)
    return [[next(completions) for _ in range(size)] for size in header["groups"]]


def request(prompts: Sequence[Prompt], sampling: Sampling, device: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(JSON, tensors) of what is to be sampled, in the arithmetic the caller is in on a kind of device."""
    precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    header = {
        "sampling": asdict(sampling),
        "ids": [prompt.id for prompt in prompts],
        "lengths": [len(prompt.tokens) for prompt in prompts],
        "autocast": precision and str(precision).removeprefix("torch."),
    }
    return header, {"prompts": torch.tensor([t for prompt in prompts for t in prompt.tokens], dtype=torch.int64)}


def requested(header: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[list[Prompt], Sampling]:
    """What `request` was given."""
    pieces = tensors["prompts"].split(header["lengths"])
    prompts = [Prompt(i, "", tuple(t.tolist())) for i, t in zip(header["ids"], pieces, strict=True)]
    return prompts, Sampling(**header["sampling"])


def arithmetic(header: dict[str, Any], device: str) -> AbstractContextManager[object]:
    """Of the caller of `request`."""
    named = header["autocast"]
    return torch.autocast(device, getattr(torch, named or "bfloat16"), enabled=named is not None)


def pack_rows(rows: Sequence[Row]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Single completions, at least one, as (JSON, tensors), from which `unpack_rows` makes them again."""
    places, found = zip(*rows, strict=True)
    header, tensors = pack([found])
    return {"places": places, "finished": header}, tensors


def unpack_rows(message: dict[str, Any], tensors: dict[str, Tensor]) -> Iterator[Row]:
    """What `pack_rows` was given."""
    (found,) = unpack(message["finished"], tensors)
    return (((prompt, place), row) for (prompt, place), row in zip(message["places"], found, strict=True))


def failure(error: Exception) -> dict[str, Any]:
    """An error, under way, as an answer."""
    return {"error": [type(error).__name__, str(error), traceback.format_exc()]}


def raise_failure(answer: dict[str, Any], where: str, other: type[Exception] = RuntimeError) -> None:
    """Raise what the engine raised `where` it runs, if it did: what it refuses as it was, all else as `other`."""
    if "error" not in answer:
        return
    kind, text, trace = answer["error"]
    known = RAISED.get(kind)
    error = known(text) if known else other(f"{where} failed: {kind}: {text}")
    error.add_note(f"in {where}:\n{trace}")
    raise error


def completions(answer: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[list[list[Completion]], float]:
    """What an answer holds, and the seconds it took. Raises what the engine raised."""
    raise_failure(answer, "the rollout process")
    return unpack(answer["completions"], tensors), answer["seconds"]


class Once:
    """Hands each completion out the first time it is given."""

    def __init__(self, finished: Finished) -> None:
        self.finished, self.given = finished, set[tuple[int, int]]()

    def __call__(self, prompt: int, place: int, completion: Completion) -> None:
        if (prompt, place) not in self.given:
            self.given.add((prompt, place))
            self.finished(prompt, place, completion)
