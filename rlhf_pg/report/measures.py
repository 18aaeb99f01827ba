"""What a run measured, as numbers: held-out figures, what it cost, how far it moved; None where nothing was logged."""

from __future__ import annotations

import math
import statistics
from typing import Any

from rlhf_pg.display.figures import BOUNDS, number
from rlhf_pg.display.text import visible
from rlhf_pg.report.axes import Point
from rlhf_pg.report.run_record import RunRecord

CRITICS = {"copy": "own copy", "policy": "shared"}


def late(values: list[float]) -> float | None:
    """Return the mean of the last tenth (at least one value); None when empty."""
    return statistics.fmean(values[-max(1, len(values) // 10) :]) if values else None


def evaluations(run: RunRecord) -> tuple[tuple[str, dict[str, Any]], tuple[str, dict[str, Any]]]:
    """Return the first and the last held-out measurement, each (when, figures).

    "before" and "after" come from summary.json; without them, the first and the last of metrics.jsonl are returned as
    ("step 20", figures).
    """
    logged = [
        (f"step {row['step']}", {k.removeprefix("eval/"): v for k, v in row.items() if k.startswith("eval/")})
        for row in run.steps
        if any(k.startswith("eval/") for k in row)
    ]
    before, after = run.evaluation("before"), run.evaluation("after")
    first = ("before", before) if before or len(logged) < 2 else logged[0]
    return first, ("after", after) if after or not logged else logged[-1]


def final_evaluation(run: RunRecord) -> tuple[str, dict[str, Any]]:
    """Return the measurement a run is judged by, after " (step 20)" unless it is the one after the last step."""
    when, figures = evaluations(run)[1]
    return "" if when == "after" else f" ({when})", figures


def eval_points(run: RunRecord, name: str = "pass@1") -> list[Point]:
    """Return (step, percent) of every evaluation: before training at step 0, those logged, and after the last step."""
    points = dict(run.series(f"eval/{name}", 100.0))
    last = float(run.last_step) if run.steps else number(run.summary, "steps") or 0.0
    for step, when in ((0.0, "before"), (last, "after")):
        value = percent(run.evaluation(when), name)
        if value is not None and (step or when == "before"):
            points[step] = value
    return sorted(points.items())


def eval_bounds(run: RunRecord, points: list[Point], name: str) -> list[tuple[float, float] | None]:
    """Return the interval in percent of each of `eval_points`, where it has one."""
    steps = {step for step, _ in points}
    rows = [row for row in run.steps if row["step"] in steps]
    by_step = {float(row["step"]): {k.removeprefix("eval/"): v for k, v in row.items()} for row in rows}
    if rows and rows[-1] is run.steps[-1]:
        by_step[float(run.last_step)] |= run.evaluation("after")
    by_step[0.0] = by_step.get(0.0, {}) | run.evaluation("before")
    bounds = []
    for step, _ in points:
        low, high = (percent(by_step.get(step, {}), f"{name}{bound}") for bound in BOUNDS)
        bounds.append((low, high) if low is not None and high is not None else None)
    return bounds


def percent(figures: dict[str, Any], name: str) -> float | None:
    """Return a share as a percentage, None where it is missing or not finite."""
    value = number(figures, name)
    return value * 100 if value is not None and math.isfinite(value) else None


def percent_text(figures: dict[str, Any], name: str) -> str:
    value = percent(figures, name)
    return "–" if value is None else f"{value:.1f}%"


def interval_text(figures: dict[str, Any], name: str) -> str:
    """Return "87.8 – 92.3", or "" when the figure has no interval."""
    low, high = (percent(figures, f"{name}{bound}") for bound in BOUNDS)
    return "" if low is None or high is None else f"{low:.1f} – {high:.1f}"


def algorithm(run: RunRecord) -> str:
    return visible(str(run.summary.get("algorithm") or run.setting("algorithm.name", "–")))


def critic(run: RunRecord) -> str:
    """Return "none", "own copy", "shared" (with the policy), or the model the critic starts from."""
    if not run.config:
        return "–"
    backbone = run.setting("critic.backbone")
    if backbone is None:
        return "own copy" if has_critic(run) else "none"
    return CRITICS.get(str(backbone), visible(str(backbone)))


def has_critic(run: RunRecord) -> bool:
    """Return whether the recipe has a critic: config.yaml has its section only then."""
    return bool(run.setting("critic")) or run.has_metric("value/")


def has_trust_region(run: RunRecord) -> bool:
    options = run.setting("algorithm.options")
    return (isinstance(options, dict) and "cg_iterations" in options) or run.has_metric("trust/")


def peak_memory(run: RunRecord) -> float | None:
    """Return the most memory that tensors of a process took, in GiB."""
    return max(run.values("memory/peak_gib"), default=None)


def step_seconds(run: RunRecord) -> float | None:
    """Return the median, which the first, slow steps do not move."""
    seconds = run.values("time/step_s")
    return statistics.median(seconds) if seconds else None


def update_share(run: RunRecord) -> float | None:
    """Return seconds in updates over seconds in steps, of the steps that logged both."""
    pairs = [(number(row, "time/update_s"), number(row, "time/step_s")) for row in run.steps]
    finite = [(u, s) for u, s in pairs if u is not None and s is not None and math.isfinite(u + s)]
    total = sum(s for _, s in finite)
    return sum(u for u, _ in finite) / total if total > 0 else None


def optimizer_steps(run: RunRecord) -> float | None:
    steps = run.values("update/steps")
    return sum(steps) if steps else None


def kl_of_steps(run: RunRecord) -> list[Point]:
    """Return KL(old || new) of each rollout step: a trust region's after its step, else the mean of the update's.

    Empty when nothing was measured. An update of a single optimizer step always logs 0: its gradient is taken at the
    very weights that sampled, so that is no measurement.
    """
    if region := run.series("trust/kl"):
        return region
    update = run.series("kl/old")
    return update if any(y for _, y in update) else []


def kl_moved(run: RunRecord) -> list[Point]:
    """Return (step, sum of the KL up to it); steps without a number, as those of a critic only, add nothing."""
    kl = dict(kl_of_steps(run))
    return list(_cumulative(run, [kl.get(float(row["step"])) or 0.0 for row in run.steps]).items()) if kl else []


def samples_seen(run: RunRecord) -> dict[float, float]:
    """Return step -> samples generated for training so far: as logged, else by outcomes, else as the recipe plans."""
    logged = {float(row["step"]): number(row, "samples/total") for row in run.steps}
    if logged and all(value is not None and math.isfinite(value) for value in logged.values()):
        return {step: value for step, value in logged.items() if value is not None}
    per_prompt, prompts = (run.setting(f"rollout.{key}", 0) for key in ("samples_per_prompt", "prompts_per_step"))
    planned = float(per_prompt * prompts) if isinstance(per_prompt, int) and isinstance(prompts, int) else 0.0
    counts = [sum(number(row, key) or 0 for key in row if key.startswith("outcome/")) for row in run.steps]
    return _cumulative(run, [count if math.isfinite(count) and count > 0 else planned for count in counts])


def seconds_spent(run: RunRecord) -> dict[float, float]:
    """Return step -> seconds of training steps so far (without evaluation between steps)."""
    seconds = [number(row, "time/step_s") or 0.0 for row in run.steps]
    return _cumulative(run, [s if math.isfinite(s) else 0.0 for s in seconds])


def _cumulative(run: RunRecord, per_step: list[float]) -> dict[float, float]:
    """Return step -> sum of `per_step` [steps] up to and including it; a step without a line counts as the next one."""
    total, previous, sums = 0.0, 0, {}
    for row, amount in zip(run.steps, per_step, strict=True):
        total += amount * max(row["step"] - previous, 0)
        previous = row["step"]
        sums[float(row["step"])] = total
    return sums
