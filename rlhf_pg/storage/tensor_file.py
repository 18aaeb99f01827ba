"""Write tensors of any device as one safetensors file, with one tensor at a time in memory."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf_pg.storage.atomic_io import write_all
from rlhf_pg.storage.digest import tensor_bytes

_DTYPES = {  # names of the safetensors format
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_tensors(path: Path, named: Mapping[str, Tensor]) -> dict[str, Any]:
    """Write and fsync a new safetensors file. Returns {"size": bytes, "sha256": digest of the file}.

    The library would copy all tensors to the CPU first; this copies one at a time. Format: header length (8 bytes,
    little-endian), JSON header padded with spaces to a multiple of 8 bytes, then the tensors' bytes.
    Raises ValueError for a dtype that the format does not have.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    order = sorted(named, key=lambda name: (-named[name].element_size(), name))  # widest first keeps all aligned
    end = 0
    for name in order:
        tensor = named[name]
        if tensor.dtype not in _DTYPES or name == "__metadata__":
            raise ValueError(f"checkpoint tensor {path.stem}/{name} of {tensor.dtype} cannot be stored as safetensors")
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    digest = hashlib.sha256()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        for data in itertools.chain([len(head).to_bytes(8, "little"), head], (tensor_bytes(named[n]) for n in order)):
            digest.update(data)
            write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return {"size": 8 + len(head) + end, "sha256": digest.hexdigest()}


def aliases_of(named: Mapping[str, Tensor]) -> dict[str, str]:
    """Return alias -> first name, for tensors that are views of one memory with the same shape, dtype and strides."""
    owners: dict[Any, str] = {}
    aliases: dict[str, str] = {}
    for name, t in named.items():
        memory = t.untyped_storage().data_ptr()
        view = (t.device, memory, t.storage_offset(), t.dtype, t.shape, t.stride()) if t.numel() else name
        owner = owners.setdefault(view, name)
        if owner != name:
            aliases[name] = owner
    return aliases
