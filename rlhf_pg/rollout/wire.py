"""What travels between the trainer and its rollout process: JSON headers, and tensors as raw bytes. No pickle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from rlhf_pg.rollout.engine import Finished
from rlhf_pg.types import Completion

RAISED = {"ValueError": ValueError, "FloatingPointError": FloatingPointError}  # as the engine itself would have
DTYPES = {"int64": torch.int64, "float32": torch.float32}


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


def completions(answer: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[list[list[Completion]], float]:
    """What an answer holds, and the seconds it took. Raises what the engine raised."""
    if "error" in answer:
        kind, text, trace = answer["error"]
        known = RAISED.get(kind)
        error = known(text) if known else RuntimeError(f"the rollout process failed: {kind}: {text}")
        error.add_note(f"in the rollout process:\n{trace}")
        raise error
    return unpack(answer["completions"], tensors), answer["seconds"]


class Once:
    """Hands each completion out the first time it is given."""

    def __init__(self, finished: Finished) -> None:
        self.finished, self.given = finished, set[tuple[int, int]]()

    def __call__(self, prompt: int, place: int, completion: Completion) -> None:
        if (prompt, place) not in self.given:
            self.given.add((prompt, place))
            self.finished(prompt, place, completion)
