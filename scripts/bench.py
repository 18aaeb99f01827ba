#!/usr/bin/env python
"""Times and weighs rlhf_pg beside other trainers and engines, and its parts by themselves, in one run.

    python scripts/bench.py [step rollout ...] [--rounds N] [--threads 2] [--shapes 1M "31M P256" ...]

Every contender is a process of its own; all do one round in turn, the first only to warm up. Prints medians and ratios
and writes bench.json and pictures. docs/performance.md says what is measured and how.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks import modes, tables
from benchmarks.race import Places
from benchmarks.shapes import SHAPES, USUAL
from rich.console import Console

MODES = ("step", "rollout", "ladder")
WIDTH = 132  # of tables in a file


def parse(given: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modes", nargs="*", metavar="MODE", help=f"{', '.join(MODES)} or all (default)")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds, after one to warm up")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="of every contender")
    parser.add_argument("--peers", default=",".join(modes.PEERS), help="trl,generate,vllm or none")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=USUAL, metavar="SHAPE", help=", ".join(SHAPES))
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    arguments = parser.parse_args(given)
    arguments.modes = list(MODES) if not arguments.modes or "all" in arguments.modes else arguments.modes
    arguments.peers = [] if arguments.peers == "none" else arguments.peers.split(",")
    for word, known in (("modes", MODES), ("peers", modes.PEERS)):
        unknown = [w for w in getattr(arguments, word) if w not in known]
        if unknown:
            parser.error(f"{word}: {', '.join(unknown)} is none of {', '.join(known)}")
    return arguments


def main(given: list[str]) -> int:
    arguments, console = parse(given), Console()
    if not console.is_terminal:
        console.width = WIDTH
    arguments.out.mkdir(parents=True, exist_ok=True)
    bench = modes.Bench(Places(arguments.out, arguments.threads, arguments.rounds), arguments.shapes, arguments.peers)
    bench.build({name: SHAPES[name] for name in arguments.shapes})
    record: dict[str, Any] = {
        "date": datetime.now().astimezone().isoformat(timespec="minutes"),
        "command": shlex.join(["python", "scripts/bench.py", *given]),
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "shapes": {name: SHAPES[name].record() for name in arguments.shapes},
        "missing": bench.missing,
        "failed": bench.places.failed,
    }
    for mode in arguments.modes:
        record[mode] = getattr(modes, mode)(bench)
        getattr(tables, mode)(record[mode], console)
        (arguments.out / "bench.json").write_text(json.dumps(record, indent=1))
    tables.notes(record, console)
    console.print(arguments.out / "bench.json")
    return 1 if bench.places.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
