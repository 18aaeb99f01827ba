"""Which curves a report shows, for one run and for several over each other."""

from __future__ import annotations

from rlhf_pg.debug.inspect import visible
from rlhf_pg.train.report_charts import Chart, Series, chart, smooth, stacked
from rlhf_pg.train.report_figures import STATISTICS, eval_names, number, tokens_per_second
from rlhf_pg.train.report_run import Point, Run, samples_seen, seconds_spent, section, series

COLORS = 8
OUTCOMES = {"scored": 1, "unparseable": 3, "truncated": 4, "timeout": 5, "error": 2, "excluded": 6}
PHASES = {"rollout": 1, "reward": 3, "update": 2, "eval": 4}


def curves(run: Run) -> tuple[list[Chart], list[str]]:
    """The charts of one run, and the titles of those without data."""
    found = {
        "Reward": _reward(run),
        "Held-out": _held_out(run),
        "Reward by function": _functions(run),
        "KL to the reference": _one(run, "KL to the reference", "kl/ref", note="nats per token", floor=0),
        "Entropy": _one(run, "Entropy", "entropy", note="nats per token", floor=0),
        "Completion length": _one(run, "Completion length", "completion/length_mean", note="tokens, mean", floor=0),
        "Truncated": _one(run, "Truncated", "completion/truncated", note="completions cut off", share=True),
        "Clipped": _one(run, "Clipped", "clip/fraction", note="tokens whose ratio was clipped", share=True),
        "Gradient norm": _one(run, "Gradient norm", "grad_norm", note="before clipping", floor=0),
        "Groups without signal": _one(
            run, "Groups without signal", "reward/zero_std_groups", note="all rewards of the group equal", share=True
        ),
        "Outcomes": stacked(
            "Outcomes", [(n, series(run, f"outcome/{n}"), c) for n, c in OUTCOMES.items()], note="share of samples"
        ),
        "Time": _time(run),
        "Generation speed": _speed(run),
        "Engine mismatch": _one(run, "Engine mismatch", "mismatch/kl", note="KL of engine and trainer, per token"),
    }
    return [c for c in found.values() if c], [title for title, c in found.items() if c is None]


def overlays(runs: list[Run]) -> tuple[list[Chart], list[str]]:
    """Reward and held-out pass@1 of several runs against samples and against seconds."""
    slowest = max((max(seconds_spent(run).values(), default=0.0) for run in runs), default=0.0)
    unit, per = ("seconds", 1.0) if slowest < 300 else ("minutes", 60.0) if slowest < 3 * 3600 else ("hours", 3600.0)
    axes = [("samples", samples_seen, 1.0), (unit, seconds_spent, per)]
    found: dict[str, Chart | None] = {}
    for label, position, scale in axes:
        rewards, passes = [], []
        for i, run in enumerate(runs):
            at, color = position(run), i % COLORS + 1
            line = smooth(series(run, "reward/mean"))
            rewards.append(Series(visible(run.name), [(at[x] / scale, y) for x, y in line], color=color))
            points = [(at.get(x, 0.0) / scale, y) for x, y in eval_points(run)]
            passes.append(Series(visible(run.name), points, color=color))
            passes.append(Series(visible(run.name), points, "points", color=color))
        found[f"Reward by {label}"] = chart(f"Reward by {label}", rewards, x_label=label)
        title = f"Held-out pass@1 by {label}"
        found[title] = chart(title, passes, x_label=label, unit="%")
    for key, title in (("kl/ref", "KL to the reference"), ("entropy", "Entropy"), ("completion/length_mean", "Length")):
        lines = [Series(visible(r.name), smooth(series(r, key)), color=i % COLORS + 1) for i, r in enumerate(runs)]
        found[title] = chart(title, lines, floor=0)
    return [c for c in found.values() if c], [title for title, c in found.items() if c is None]


def eval_points(run: Run, name: str = "pass@1") -> list[Point]:
    """(step, percent) of every evaluation: before training at step 0, those logged, and after the last step."""
    points = {x: y for x, y in series(run, f"eval/{name}", 100.0)}
    last = float(run.steps[-1]["step"]) if run.steps else number(run.summary, "steps") or 0.0
    for step, part in ((0.0, "before"), (last, "after")):
        value = number(section(run, part), name)
        if value is not None and (step or part == "before"):
            points[step] = value * 100
    return sorted(points.items())


def _bounds(run: Run, points: list[Point], name: str) -> list[tuple[float, float] | None]:
    wanted = {step for step, _ in points}
    rows = [row for row in run.steps if row["step"] in wanted]
    by_step = {float(row["step"]): {k.removeprefix("eval/"): v for k, v in row.items()} for row in rows}
    if rows and rows[-1] is run.steps[-1]:
        by_step[float(run.steps[-1]["step"])] |= section(run, "after")
    by_step[0.0] = by_step.get(0.0, {}) | section(run, "before")
    out = []
    for step, _ in points:
        low, high = (number(by_step.get(step, {}), f"{name}{bound}") for bound in ("_low", "_high"))
        out.append((low * 100, high * 100) if low is not None and high is not None else None)
    return out


def _reward(run: Run) -> Chart | None:
    raw = series(run, "reward/mean")
    return chart(
        "Reward", [Series("smoothed", smooth(raw)), Series("each step", raw, "faint")], "mean of the step's samples"
    )


def _held_out(run: Run) -> Chart | None:
    logged = {k.removeprefix("eval/") for row in run.steps for k in row if k.startswith("eval/")}
    names = eval_names(logged, section(run, "before"), section(run, "after"))[:4]
    lines, dots = [], []
    for i, name in enumerate(names):
        points = eval_points(run, name)
        lines.append(Series(visible(name), points, color=i + 1))
        dots.append(Series(visible(name), points, "points", i + 1, _bounds(run, points, name)))
    return chart("Held-out", [*lines, *dots], "share of problems solved", unit="%")


def _functions(run: Run) -> Chart | None:
    names = sorted(
        {k.removeprefix("reward/") for row in run.steps for k in row if k.startswith("reward/")} - STATISTICS
    )
    if len(names) < 2:
        return None
    lines = [Series(visible(n), smooth(series(run, f"reward/{n}")), color=i + 1) for i, n in enumerate(names[:COLORS])]
    return chart("Reward by function", lines, "smoothed, before weights")


def _one(run: Run, title: str, key: str, note: str, floor: float | None = None, share: bool = False) -> Chart | None:
    raw = series(run, key, 100.0 if share else 1.0)
    lines = [Series("smoothed", smooth(raw)), Series("each step", raw, "faint")]
    return chart(title, lines, note, unit="%" if share else "", floor=0 if share else floor)


def _time(run: Run) -> Chart | None:
    layers = [(name, series(run, f"time/{name}_s"), color) for name, color in PHASES.items()]
    parts = [dict(points) for _, points, _ in layers]
    rest: list[Point] = [
        (x, max(y - sum(p.get(x) or 0.0 for p in parts), 0.0)) for x, y in series(run, "time/step_s") if y is not None
    ]
    return stacked("Time", [*layers, ("other", rest, 8)], note="seconds per step", share=False)


def _speed(run: Run) -> Chart | None:
    raw: list[Point] = [(float(row["step"]), tokens_per_second(row)) for row in run.steps]
    lines = [Series("smoothed", smooth(raw)), Series("each step", raw, "faint")]
    return chart("Generation speed", lines, "tokens per second of rollout", floor=0)
