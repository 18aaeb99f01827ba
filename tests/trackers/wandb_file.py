"""Read what wandb wrote offline: its .wandb file is a LevelDB log of its own protobuf records."""

from __future__ import annotations

import json
import time
from functools import reduce
from pathlib import Path
from typing import Any

BLOCK, HEADER = 32768, 7  # bytes; a record's header has checksum (4), length (2), kind (1)
FULL, LAST = 1, 4  # kinds of a record: whole, or its last part


def records(file: Path) -> list[Any]:
    """Return the records of a .wandb file, as wandb's own protobuf class parses them."""
    from wandb.proto import wandb_internal_pb2

    Record: Any = vars(wandb_internal_pb2)["Record"]

    data, at, parts, out = file.read_bytes(), 7, b"", []  # 7: wandb's mark at the head of the file
    while at + HEADER <= len(data):
        left = BLOCK - at % BLOCK
        if left < HEADER:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (FULL, LAST):
            record = Record()
            record.ParseFromString(parts)
            out.append(record)
            parts = b""
    return out


def history(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of all offline runs in a folder, in order of time, without wandb's own keys."""
    rows = []
    for file in sorted(folder.glob("offline-run-*/*.wandb")):
        for record in _finished(file):
            if record.WhichOneof("record_type") == "history":
                row: dict[str, Any] = {}
                for item in record.history.item:
                    *above, leaf = item.nested_key or [item.key]
                    reduce(lambda part, key: part.setdefault(key, {}), above, row)[leaf] = json.loads(item.value_json)
                rows.append({key: value for key, value in row.items() if not key.startswith("_")})
    return rows


def _finished(file: Path, within_s: float = 60.0) -> list[Any]:
    """Return the records of a run that has ended, whose last ones wandb's own process may still be writing."""
    until = time.monotonic() + within_s
    while True:
        found = records(file)
        if any(record.WhichOneof("record_type") == "exit" for record in found) or time.monotonic() > until:
            return found
        time.sleep(0.1)
