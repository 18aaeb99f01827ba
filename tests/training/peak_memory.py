"""`python -m tests.training.peak_memory CHANGES ...`: two real training steps of each; a line of JSON for each, with the
estimated and the measured peak.

Measured is VmHWM above what was resident after a first run of the same kind with the smallest model: imports, and the
code and buffers that libraries load on first use. Linux only.
"""

from __future__ import annotations

import gc
import json
import re
import sys
from pathlib import Path
from typing import Any

from rlhf_pg.display.live import LiveView
from rlhf_pg.distributed.interrupt import StopRequest
from rlhf_pg.estimate.memory import PHASES
from rlhf_pg.training import loop, setup
from rlhf_pg.training.resume import Progress
from rlhf_pg.training.variance import _NoRunDir
from tests.training import small_run


def resident(key: str) -> int:
    """Bytes: VmRSS now, VmHWM at most so far."""
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def steps(changes: dict[str, Any], number: int) -> setup.Session:
    session = setup.build(small_run.recipe(Path("unused"), **changes))
    run = loop.TrainingRun(session, _NoRunDir(), LiveView(number, "off"), StopRequest(), Progress())  # pyright: ignore[reportArgumentType]
    for _ in range(number):
        loop.train_step(run)
    return session


def peak(changes: dict[str, Any]) -> dict[str, Any]:
    model = changes.pop("model")
    small = {"prompts_per_step": 2, "samples_per_prompt": 2, "max_new_tokens": 4}
    steps({**changes, "model": {**model, "path": "tiny"}, "rollout": small}, 1).close()
    gc.collect()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts over
    session = steps({**changes, "model": model}, 2)
    assert session.estimate
    measured, estimate = resident("VmHWM") - before, session.estimate.memory
    session.close()
    return {
        "estimated": estimate.peak,
        "measured": measured,
        "phase": estimate.phase,
        "parts": {part.name: part.size for part in estimate.parts},
        "phases": {phase: estimate.at(phase) for phase in PHASES},
    }


if __name__ == "__main__":
    for one in sys.argv[1:]:
        print(json.dumps(peak(json.loads(one))), flush=True)
        gc.collect()
