#!/usr/bin/env python
"""Measure time and memory of rlhf_pg beside other trainers and engines, and of its parts, in one run.

    python scripts/bench.py [step rollout update overhead memory scaling ladder learn | all]
                            [--rounds 5] [--threads 2] [--peers trl,generate,vllm|none]
                            [--shapes 1M "31M P256" ...] [--against CHECKOUT] [--out runs/bench]

Every contender is a process of its own; all do one round in turn, the first only to warm up. Prints medians and ratios,
writes bench.json and a picture per mode. docs/performance.md says what is measured and how.
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

from rich.console import Console

from benchmarks import machine, matmul, pictures
from benchmarks.call import PEERS, Call
from benchmarks.modes import MODES
from benchmarks.race import Contender, Places
from benchmarks.shapes import SHAPES, USUAL
from benchmarks.tables import TABLES, notes

USUAL_MODES = [mode for mode in MODES if mode not in ("ladder", "learn")]
WIDTH = 132  # of tables that go to a file


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    usual = f"{', '.join(MODES)}, or all; default: all but ladder and learn"
    parser.add_argument("modes", nargs="*", metavar="MODE", help=usual)
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds, after one to warm up (default 5)")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="of every contender")
    parser.add_argument("--peers", default=",".join(PEERS), help=f"{','.join(PEERS)} (default), or none")
    shapes = ", ".join(f"{name!r}" for name in SHAPES)
    parser.add_argument("--shapes", nargs="+", default=USUAL, metavar="SHAPE", help=f"{shapes}; default: all but tiny")
    parser.add_argument("--against", type=Path, help="another checkout of this project: steps and rollouts beside it")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    arguments = parser.parse_args(words)
    arguments.modes = list(MODES) if "all" in arguments.modes else arguments.modes or USUAL_MODES
    arguments.peers = [] if arguments.peers == "none" else arguments.peers.split(",")
    for name, choices in (("modes", MODES), ("peers", PEERS), ("shapes", SHAPES)):
        unknown = [word for word in getattr(arguments, name) if word not in choices]
        if unknown:
            parser.error(f"{name}: {', '.join(unknown)} is none of {', '.join(choices)}")
    if arguments.against and not (arguments.against / "scripts" / "benchmarks" / "ours.py").is_file():
        parser.error(f"--against: {arguments.against} is no checkout of this project")
    if min(arguments.rounds, arguments.threads) < 1:
        parser.error("--rounds and --threads must be at least 1")
    return arguments


def main(words: list[str]) -> int:
    arguments, console = parse(words), Console()
    if not console.is_terminal:
        console.width = WIDTH
    arguments.out.mkdir(parents=True, exist_ok=True)
    places = Places(arguments.out.resolve(), arguments.threads, arguments.rounds)
    call = Call(places, arguments.shapes, arguments.peers, arguments.against and arguments.against.resolve())
    record = describe(call, words)
    for mode in arguments.modes:
        record[mode] = call.records[mode] = MODES[mode](call)
        TABLES[mode](record[mode], console)
        (arguments.out / "bench.json").write_text(json.dumps(record, indent=1))
        pictures.draw(mode, record[mode], arguments.out)
    notes(record, console)
    console.print(f"{arguments.out / 'bench.json'}, {arguments.out}/*.png", highlight=False)
    return 1 if places.failed else 0


def describe(call: Call, words: list[str]) -> dict[str, Any]:
    """Build the models, time the machine's matrix products, and return what is run, with what, and on what."""
    call.build({name: SHAPES[name] for name in call.shapes})
    square = {"sizes": [[matmul.SQUARE] * 3]}
    measured = call.places.race("machine", [Contender("matmul", "benchmarks.matmul:rates", square)], rounds=3)
    rates = [r["gflops"][0] for m in measured.values() for r in m.rounds[""]]
    return {
        "date": datetime.now().astimezone().isoformat(timespec="minutes"),
        "command": shlex.join(["python", "scripts/bench.py", *words]),
        "threads": call.places.threads,
        "rounds": call.places.rounds,
        "versions": machine.versions(),
        "machine": machine.describe() | {"matmul_gflops": max(rates, default=None)},
        "shapes": {name: SHAPES[name].record() | {"counted": call.parameters[name]} for name in call.shapes},
        "missing": call.missing,
        "failed": call.places.failed,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
