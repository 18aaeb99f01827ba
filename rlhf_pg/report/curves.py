"""Which curves the report of one run shows."""

from __future__ import annotations

from collections.abc import Iterator

from rlhf_pg.display.figures import STATISTICS, counted, eval_names, number, tokens_per_second
from rlhf_pg.display.text import visible
from rlhf_pg.report import facts
from rlhf_pg.report.charts import Chart, Series, chart, smooth, stacked
from rlhf_pg.report.groups import COLORS
from rlhf_pg.report.held_out import bounds, eval_points
from rlhf_pg.report.run_data import Point, Run, dig, section, series

OUTCOMES = {"scored": 1, "unparseable": 3, "truncated": 4, "timeout": 5, "error": 2, "excluded": 6}
PHASES = {"rollout": 1, "reward": 3, "update": 2, "eval": 4}
Found = tuple[str, Chart | None, bool]  # title, chart if it has data, whether this recipe could have recorded it


def curves(run: Run) -> tuple[list[Chart], list[str]]:
    """The charts of one run, and the titles of those that its recipe could have recorded but has no data for."""
    found = [*_learning(run), *_policy(run), *_critic(run), *_trust_region(run), *_work(run)]
    return [c for _, c, _ in found if c], [title for title, c, possible in found if c is None and possible]


def _learning(run: Run) -> Iterator[Found]:
    yield "Reward", _reward(run), True
    yield "Held-out", _held_out(run), not run.config or dig(run.config, "data.eval") is not None
    specs = dig(run.config, "rewards")
    yield "Reward by function", _functions(run), isinstance(specs, list) and len(specs) > 1


def _policy(run: Run) -> Iterator[Found]:
    with_reference = dig(run.config, "kl.coefficient") != 0
    note = "nats per token"
    yield "KL to the reference", _one(run, "KL to the reference", "kl/ref", note, floor=0), with_reference
    adapts = dig(run.config, "kl.target") is not None
    yield "KL coefficient", _one(run, "KL coefficient", "kl/coefficient", "adapted to kl.target", floor=0), adapts
    yield "KL of the update", _update_kl(run), False
    yield "Entropy", _one(run, "Entropy", "entropy", note, floor=0), True
    note = "tokens, mean"
    yield "Completion length", _one(run, "Completion length", "completion/length_mean", note, floor=0), True
    note = "completions cut off"
    yield "Truncated", _one(run, "Truncated", "completion/truncated", note, share=True), True
    options = dig(run.config, "algorithm.options")
    clips = isinstance(options, dict) and "clip_low" in options
    yield "Clipped", _one(run, "Clipped", "clip/fraction", "tokens whose ratio was clipped", share=True), clips
    note = "of the surrogate" if facts.has_trust_region(run) else "before clipping"
    yield "Gradient norm", _one(run, "Gradient norm", "grad_norm", note, floor=0), True
    note = "all rewards of the group equal"
    yield "Groups without signal", _one(run, "Groups without signal", "reward/zero_std_groups", note, share=True), True


def _critic(run: Run) -> Iterator[Found]:
    asked = facts.has_critic(run)
    note = "0: no better than the mean return, 1: exact"
    explained = _one(run, "Explained variance", "value/explained_variance", note, ceiling=1.0)
    yield "Explained variance", explained, asked
    yield "Critic loss", _one(run, "Critic loss", "value/loss", "half the squared error", floor=0), asked
    note = "before clipping"
    yield "Critic gradient norm", _one(run, "Critic gradient norm", "value/grad_norm", note, floor=0), asked


def _trust_region(run: Run) -> Iterator[Found]:
    asked = facts.has_trust_region(run)
    yield "Trust region", _region(run), asked
    rise = "of the surrogate, in the step taken"
    yield "Improvement", _one(run, "Improvement", "trust/improvement", rise, floor=0), asked
    tried = "lengths tried until one was accepted"
    yield "Line search", _one(run, "Line search", "trust/line_search_steps", tried, floor=0), asked
    left = "of the gradient, left by conjugate gradients"
    yield "Residual", _one(run, "Residual", "trust/cg_residual", left, share=True), asked
    passes = [
        Series(name, smooth(series(run, f"trust/{name}")), color=color)
        for name, color in (("forwards", 1), ("backwards", 2))
    ]
    yield "Passes", chart("Passes", passes, "over the rows of a step, smoothed", floor=0), asked


def _work(run: Run) -> Iterator[Found]:
    layers = [(n, series(run, f"outcome/{n}"), c) for n, c in OUTCOMES.items()]
    yield "Outcomes", stacked("Outcomes", layers, note="share of samples"), True
    yield "Time", _time(run), True
    yield "Generation speed", _speed(run), True
    memory = [Series("peak", series(run, "memory/peak_mb"))]
    yield "Memory", chart("Memory", memory, "MB, the most held so far", floor=0), True
    note = "KL of engine and trainer, per token"
    yield "Engine mismatch", _one(run, "Engine mismatch", "mismatch/kl", note), True


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
        dots.append(Series(visible(name), points, "points", i + 1, bounds(run, points, name)))
    return chart("Held-out", [*lines, *dots], "share of problems solved", unit="%")


def _functions(run: Run) -> Chart | None:
    names = sorted(
        {k.removeprefix("reward/") for row in run.steps for k in row if k.startswith("reward/")} - STATISTICS
    )
    if len(names) < 2:
        return None
    lines = [Series(visible(n), smooth(series(run, f"reward/{n}")), color=i + 1) for i, n in enumerate(names[:COLORS])]
    return chart("Reward by function", lines, "smoothed, before weights")


def _update_kl(run: Run) -> Chart | None:
    """A trust region's is in its own chart; an update of one optimizer step has none to show."""
    if facts.has_trust_region(run):
        return None
    raw = facts.kl_of_steps(run)
    limit = _limit([(x, number(dig(run.config, "update", {}), "max_kl")) for x, _ in raw], "stops at")
    note = "KL(old || new), mean over its optimizer steps"
    return chart("KL of the update", [*_smoothed(raw), *limit], note, floor=0)


def _region(run: Run) -> Chart | None:
    raw = series(run, "trust/kl")
    taken = series(run, "trust/accepted")
    refused = sum(y == 0 for _, y in taken)
    note = "KL(old || new) of each step, nats"
    told = f"{note}; {refused} of {counted(len(taken), 'step')} refused" if refused else note
    return chart("Trust region", [*_smoothed(raw), *_limit(series(run, "trust/max_kl"), "limit")], told, floor=0)


def _smoothed(raw: list[Point]) -> list[Series]:
    return [Series("smoothed", smooth(raw)), Series("each step", raw, "faint")]


def _limit(points: list[Point], label: str) -> list[Series]:
    return [Series(label, points, "limit", 5)] if any(y is not None for _, y in points) else []


def _one(
    run: Run,
    title: str,
    key: str,
    note: str,
    floor: float | None = None,
    ceiling: float | None = None,
    share: bool = False,
) -> Chart | None:
    raw = series(run, key, 100.0 if share else 1.0)
    return chart(title, _smoothed(raw), note, "%" if share else "", floor=0 if share else floor, ceiling=ceiling)


def _time(run: Run) -> Chart | None:
    layers = [(name, series(run, f"time/{name}_s"), color) for name, color in PHASES.items()]
    parts = [dict(points) for _, points, _ in layers]
    rest: list[Point] = [
        (x, max(y - sum(p.get(x) or 0.0 for p in parts), 0.0)) for x, y in series(run, "time/step_s") if y is not None
    ]
    return stacked("Time", [*layers, ("other", rest, 8)], note="seconds per step", share=False)


def _speed(run: Run) -> Chart | None:
    raw: list[Point] = [(float(row["step"]), tokens_per_second(row)) for row in run.steps]
    return chart("Generation speed", _smoothed(raw), "tokens per second of rollout", floor=0)
