"""What travels between an engine's client and its worker: messages of JSON and tensors, as safetensors. No pickle.

client -> worker   weights   some tensors, which the next `generate` is to be sampled from
                   generate  what to sample (`pack_request`), `id` and `version`; see `EngineClient._send`
                   stream    send completions of the request `id` as they finish: they are waited for
                   cancel    drop the request under way
worker -> client   `id`, `version`, `progress`, `rows` (`pack_rows`); the last of a request has `last`, and `seconds`
                   or why there are no more rows: `cancelled`, or `error` (`pack_error`)
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from multiprocessing.connection import Connection
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from rlhf_pg.types import Completion, Prompt, Sampling

RAISED = {"ValueError": ValueError, "FloatingPointError": FloatingPointError}  # as the engine itself would have
Header = dict[str, Any]  # JSON
Row = tuple[tuple[int, int], Completion]  # (index of the prompt, of its sample), what was sampled


class StaleWeightsError(Exception):
    """The worker has weights of another version than those that a request wants."""


def send(connection: Connection, header: Header, tensors: Mapping[str, Tensor] | None = None) -> None:
    """Send one message: a header and contiguous tensors. Raises OSError when the other end is gone."""
    connection.send_bytes(json.dumps(header).encode())
    connection.send_bytes(save(dict(tensors or {})))


def receive(connection: Connection) -> tuple[Header, dict[str, Tensor]]:
    """Wait for the next message. Raises EOFError or OSError when the other end is gone, or sends something else."""
    try:
        return json.loads(connection.recv_bytes()), load(connection.recv_bytes())
    except (ValueError, SafetensorError) as error:
        raise OSError(f"what came is not a message of this protocol: {error}") from error


def pack(groups: Sequence[Sequence[Completion]]) -> tuple[Header, dict[str, Tensor]]:
    """Return groups of completions as (JSON, flat tensors), from which `unpack` makes them again."""
    rows = [completion for group in groups for completion in group]
    header = {
        "groups": [len(group) for group in groups],
        "lengths": [len(row.tokens) for row in rows],
        "finish": [row.finish for row in rows],
        "versions": [row.version for row in rows],
    }
    return header, {"tokens": torch.cat([r.tokens for r in rows]), "logp": torch.cat([r.logp for r in rows])}


def unpack(header: Header, tensors: Mapping[str, Tensor]) -> list[list[Completion]]:
    """Undo `pack`."""
    pieces = (tensors[name].split(header["lengths"]) for name in ("tokens", "logp"))
    rows = zip(*pieces, header["finish"], header["versions"], strict=True)
    completions = (Completion(t.clone(), logp.clone(), finish, version) for t, logp, finish, version in rows)
    return [[next(completions) for _ in range(size)] for size in header["groups"]]


def pack_rows(rows: Sequence[Row]) -> tuple[Header, dict[str, Tensor]]:
    """Return single completions as (JSON, tensors), from which `unpack_rows` makes them again."""
    if not rows:
        return {}, {}
    places, completions = zip(*rows, strict=True)
    header, tensors = pack([completions])
    return {"places": places, "rows": header}, tensors


def unpack_rows(header: Header, tensors: Mapping[str, Tensor]) -> Iterator[Row]:
    """Undo `pack_rows`."""
    if "rows" in header:
        (completions,) = unpack(header["rows"], tensors)
        yield from (((prompt, j), row) for (prompt, j), row in zip(header["places"], completions, strict=True))


def pack_request(prompts: Iterable[Prompt], sampling: Sampling, device: str) -> tuple[Header, dict[str, Tensor]]:
    """Return what to sample as (JSON, tensors), with the arithmetic (autocast) that is on for this kind of device."""
    prompts = list(prompts)
    precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    header = {
        "sampling": asdict(sampling),
        "ids": [prompt.id for prompt in prompts],
        "lengths": [len(prompt.tokens) for prompt in prompts],
        "autocast": precision and str(precision).removeprefix("torch."),
    }
    return header, {"prompts": torch.tensor([t for prompt in prompts for t in prompt.tokens], dtype=torch.int64)}


def unpack_request(header: Header, tensors: Mapping[str, Tensor]) -> tuple[list[Prompt], Sampling]:
    """Undo `pack_request`, but for the arithmetic: see `autocast`."""
    pieces = tensors["prompts"].split(header["lengths"])
    prompts = [Prompt(i, "", tuple(t.tolist())) for i, t in zip(header["ids"], pieces, strict=True)]
    return prompts, Sampling(**header["sampling"])


def autocast(header: Header, device: str) -> AbstractContextManager[object]:
    """Return the arithmetic that a request was packed in."""
    dtype = header["autocast"]
    return torch.autocast(device, getattr(torch, dtype or "bfloat16"), enabled=dtype is not None)


def pack_error(error: Exception) -> Header:
    """Return an exception that is being handled as JSON."""
    return {"error": [type(error).__name__, str(error), traceback.format_exc()]}


def raise_error(header: Header, worker: str, other: type[Exception]) -> None:
    """Raise the error that a message brings, if it does: a request's fault with its own type, any other as `other`."""
    if "error" not in header:
        return
    kind, text, trace = header["error"]
    error = RAISED[kind](text) if kind in RAISED else other(f"{worker} failed: {kind}: {text}")
    error.add_note(f"in {worker}:\n{trace}")
    raise error
