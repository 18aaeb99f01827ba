"""What must not depend on the number of processes, and how exactly."""

from __future__ import annotations

import json
import math
from pathlib import Path

from tests.dist import plays

EXACT = ("step", "reward/mean", "reward/std", "reward/zero_std_groups", "completion/", "tokens/generated", "samples/")
CLOSE = 1e-3  # relative


def assert_same_run(one: Path, several: Path, *, tolerance: float = CLOSE) -> None:
    """The same samples in every step, so equal rewards; gradient norms and all else but for rounding; the same
    evaluations and exported weights."""
    expected, measured = plays.metrics(one), plays.metrics(several)
    assert len(expected) == len(measured) == plays.STEPS
    for a, b in zip(expected, measured, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            if name.startswith(EXACT):
                assert a[name] == b[name], (name, a[name], b[name])
            elif not name.startswith("tokens/"):  # how many were forwarded depends on how they are shared out
                noise = 1e-5 if name == "mismatch/worst" else 1e-6  # a largest rounding error, of log-probs of some 5
                assert close(a[name], b[name], tolerance, noise), (a["step"], name, a[name], b[name])
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (one, several)]
    assert [s["before"] for s in summaries[:1]] == [s["before"] for s in summaries[1:]]
    assert summaries[0]["after"] == summaries[1]["after"]


def close(a: float | None, b: float | None, tolerance: float, noise: float) -> bool:
    """Within a relative tolerance, or, for numbers that are rounding themselves, `noise`."""
    if a is None or b is None:
        return a is b
    return math.isclose(a, b, rel_tol=tolerance, abs_tol=noise)
