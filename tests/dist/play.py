"""Started by `accelerate launch` in every process: runs some recipes one after the other, which spares their starts.

    accelerate launch --config_file X.yaml -m tests.dist.play PLAYS.json

PLAYS.json: a list of {"recipe": {...}}, some with "stop": {"rank": r, "after": n}: rank r is asked to stop after n
optimizer steps. The exit status of each run goes to PLAYS.status.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rlhf_pg import config
from rlhf_pg.commands.run_training import train
from rlhf_pg.training import loop


def play(recipe: dict[str, Any], stop: dict[str, int] | None = None) -> int:
    """Run one recipe; returns its exit status."""
    agree, left = loop.TrainingRun.agree, [stop["after"] if stop else 0]

    def counted(self: loop.TrainingRun) -> None:
        left[0] -= 1
        if stop and left[0] == 0 and self.ranks.rank == stop["rank"]:
            self.stop.request("SIGTERM")
        agree(self)

    loop.TrainingRun.agree = counted
    try:
        return train(config.parse(recipe, config.Recipe))
    finally:
        loop.TrainingRun.agree = agree


def main(plays: Path) -> None:
    status = [play(**one) for one in json.loads(plays.read_text())]
    plays.with_suffix(".status.json").write_text(json.dumps(status))  # the same in every process


if __name__ == "__main__":
    main(Path(sys.argv[1]))
