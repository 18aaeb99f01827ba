"""Started by `accelerate launch` in every process: `rlhf-pg train` of a recipe in which rank 1 fails in step 2.

-m tests.dist.faults raise|hang|kill|rollout RECIPE.yaml
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

from rlhf_pg import cli
from rlhf_pg.training import loop


def boom() -> None:
    raise RuntimeError("boom")


def sleep_in_the_update() -> None:
    time.sleep(3600)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


FAULTS = {"raise": boom, "hang": sleep_in_the_update, "kill": kill}


def main(kind: str, recipe: str) -> int:
    update, rollouts, calls = loop.UPDATES["gradient"], loop.collect.rollouts, []

    def faulty_update(*arguments: Any) -> Iterator[dict[str, float]]:
        learner, step = arguments[0], arguments[4]
        if step == 1 and learner.backend.ranks.rank == 1:
            FAULTS[kind]()
        yield from update(*arguments)

    def faulty_rollouts(*arguments, **keywords):
        calls.append(1)
        if len(calls) == 2 and os.environ["RANK"] == "1":
            boom()
        return rollouts(*arguments, **keywords)

    if kind == "rollout":
        loop.collect.rollouts = faulty_rollouts  # pyright: ignore[reportPrivateImportUsage]
    else:
        loop.UPDATES["gradient"] = faulty_update  # pyright: ignore[reportArgumentType]
    return cli.main(["train", recipe])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
