"""Tables of several runs: how they ended, what they cost, equal budgets, seeds, and where their recipes differ."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from rlhf_pg.display.figures import clock, compact, cut, eval_names, number
from rlhf_pg.display.text import visible
from rlhf_pg.report import facts
from rlhf_pg.report.charts import smooth
from rlhf_pg.report.groups import NOT_RECIPE, Group, flat
from rlhf_pg.report.held_out import eval_points, final
from rlhf_pg.report.notices import late, values
from rlhf_pg.report.run_data import Run, samples_seen, seconds_spent, section, series


@dataclass(frozen=True)
class Table:
    title: str
    note: str
    head: list[str]
    rows: list[list[str]]
    colors: list[tuple[int, bool]] = field(default_factory=list)  # of the rows: colour, and whether lines are broken


def tables(groups: list[Group]) -> tuple[list[Table], list[Table]]:
    """Those to be read first, and those to look things up in; only those that have a row."""
    several = any(len(group.runs) > 1 for group in groups)
    first = [
        final_figures(groups),
        over_seeds(groups) if several else None,
        cost(groups),
    ]
    alone = [replace(group, label=visible(run.name), runs=[run]) for group in groups for run in group.runs]
    later = [
        equal("samples", samples_seen, compact, groups),
        equal("seconds in steps", seconds_spent, clock, groups),
        replace(final_figures(alone), title="Every run") if several else None,
        recipe_differences(groups),
    ]
    return [t for t in first if t and t.rows], [t for t in later if t and t.rows]


def final_figures(groups: list[Group]) -> Table:
    """One row per recipe, as it ended or as far as it got."""
    runs = [run for group in groups for run in group.runs]
    ks = eval_names(*(final(run)[1] for run in runs))
    referenced = any(values(run, "kl/ref") for run in runs)
    head = ["run", "algorithm", "steps", "samples", "reward", *(["KL to ref."] * referenced), "KL moved"]
    rows = [
        [
            group.label,
            _same(group, facts.algorithm),
            _mean(group, lambda run: run.steps[-1]["step"] if run.steps else None, "{:.0f}"),
            compact(_average(group.each(_samples))).replace("-", "–"),
            _mean(group, lambda run: late(values(run, "reward/mean")), "{:.3f}"),
            *([_mean(group, lambda run: late(values(run, "kl/ref")), "{:.3g}")] if referenced else []),
            _mean(group, _moved, "{:.3g}"),
            *(_change(group, k) for k in ks),
        ]
        for group in groups
    ]
    reference = " and KL to the reference" if referenced else ""
    note = f"reward{reference}: mean of the last tenth of the steps; KL moved: of every step, summed"
    means = "; of several seeds the mean" if len(runs) > len(groups) else ""
    return Table("Final figures", note + means, [*head, *map(visible, ks)], rows, _colors(groups))


def over_seeds(groups: list[Group]) -> Table:
    """How far the seeds of each recipe lie apart."""
    rows = []
    for group in groups:
        rewards = group.each(lambda run: late(values(run, "reward/mean")))
        solved = group.each(lambda run: number(final(run)[1], "pass@1"))
        spread = [_three(rewards, "{:.3f}"), _three([100 * v for v in solved], "{:.1f}%")]
        rows.append([group.label, str(len(group.runs)), *spread[0], *spread[1]])
    head = ["run", "seeds", "reward, mean", "lowest", "highest", "pass@1, mean", "lowest", "highest"]
    return Table("Over seeds", "reward: mean of the last tenth of the steps", head, rows, _colors(groups))


def cost(groups: list[Group]) -> Table:
    """What each recipe took: time, memory, and the critic that takes a part of both."""
    rows = [
        [
            group.label,
            _same(group, facts.algorithm),
            _same(group, facts.critic),
            _mean(group, facts.peak_memory_mb, "{:,.0f} MB"),
            _mean(group, facts.step_seconds, "{:.2f} s"),
            _mean(group, facts.update_share, "{:.0%}"),
            _mean(group, facts.optimizer_steps, "{:,.0f}"),
            _wall(group),
        ]
        for group in groups
    ]
    head = [
        "run",
        "algorithm",
        "critic",
        "peak memory",
        "seconds per step",
        "update share",
        "optimizer steps",
        "wall time",
    ]
    note = "seconds per step: median; update share: of all seconds in steps; wall time: with evaluation"
    return Table("Cost", note, head, rows, _colors(groups))


def equal(
    what: str, spent: Callable[[Run], dict[float, float]], text: Callable[[float], str], groups: list[Group]
) -> Table | None:
    """Every run at the largest amount of `what` (step -> amount so far) that all reached; None when that is nothing."""
    budget = min((max(spent(run).values(), default=0.0) for group in groups for run in group.runs), default=0.0)
    if budget <= 0:
        return None
    other, other_text = (seconds_spent, clock) if spent is samples_seen else (samples_seen, compact)
    rows = []
    for group in groups:
        at = {run.name: max((s for s, n in spent(run).items() if n <= budget), default=None) for run in group.runs}
        here = [(run, step) for run in group.runs if (step := at[run.name]) is not None]
        rewards = [y for run, step in here if (y := _reward_at(run, step)) is not None]
        amounts = [other(run)[step] for run, step in here]
        rows.append(
            [
                group.label,
                f"{statistics.fmean(step for _, step in here):.0f}" if here else "–",
                other_text(statistics.fmean(amounts)) if amounts else "–",
                f"{statistics.fmean(rewards):.3f}" if rewards else "–",
                _solved_by(here),
            ]
        )
    head = [
        "run",
        "step",
        "seconds in steps" if spent is samples_seen else "samples",
        "reward, smoothed",
        "latest held-out pass@1",
    ]
    return Table(f"At equal {what}: {text(budget)}", "the most that every run reached", head, rows, _colors(groups))


def recipe_differences(groups: list[Group]) -> Table | None:
    """Recipe keys on which the recipes differ; the run directory is left out, and seeds that make no recipe."""
    known = [dict(flat(group.runs[0].config)) for group in groups]
    if not all(known):
        return None
    seeds = any(len(group.runs) > 1 for group in groups)
    idle = NOT_RECIPE if seeds else ("run.dir",)
    keys = sorted({k for f in known for k in f if not k.startswith(idle)})
    rows = [
        [visible(k), *(visible(cut(str(f.get(k, "–")), 120)) for f in known)]
        for k in keys
        if len({str(f.get(k)) for f in known}) > 1
    ]
    return Table("Recipes differ in", "", ["key", *(group.label for group in groups)], rows)


def _colors(groups: list[Group]) -> list[tuple[int, bool]]:
    return [(group.color, group.again) for group in groups]


def _same(group: Group, figure: Callable[[Run], str]) -> str:
    return ", ".join(dict.fromkeys(figure(run) for run in group.runs))


def _average(found: list[float]) -> float | None:
    return statistics.fmean(found) if found else None


def _mean(group: Group, figure: Callable[[Run], float | None], form: str) -> str:
    value = _average(group.each(figure))
    return "–" if value is None else form.format(value)


def _three(found: list[float], form: str) -> list[str]:
    """Mean, lowest, highest."""
    if not found:
        return ["–"] * 3
    return [form.format(v) for v in (statistics.fmean(found), min(found), max(found))]


def _samples(run: Run) -> float | None:
    samples = number(run.summary, "samples")
    return samples if samples is not None else max(samples_seen(run).values(), default=None)


def _moved(run: Run) -> float | None:
    path = facts.kl_moved(run)
    return path[-1][1] if path else None


def _wall(group: Group) -> str:
    walls = group.each(lambda run: number(run.summary, "wall_s"))
    return clock(statistics.fmean(walls)) if len(walls) == len(group.runs) else "unfinished"


def _change(group: Group, key: str) -> str:
    """ "37.0 → 95.3%"; the step of the measurement when it is not the one after training."""
    last = [(when, value) for when, figures in map(final, group.runs) if (value := number(figures, key)) is not None]
    if not last:
        return "–"
    first = group.each(lambda run: number(section(run, "before"), key))
    came = f"{statistics.fmean(first) * 100:.1f} → " if first else ""
    whens = "".join(sorted({when for when, _ in last}))
    return f"{came}{statistics.fmean(value for _, value in last) * 100:.1f}%{whens}"


def _reward_at(run: Run, step: float) -> float | None:
    reward = smooth([point for point in series(run, "reward/mean") if point[0] <= step])
    return next((y for _, y in reversed(reward) if y is not None), None)


def _solved_by(here: list[tuple[Run, float]]) -> str:
    """ "88.7% (step 100)": the latest held-out pass@1 that the runs had by their steps, of several the mean."""
    solved: list[tuple[float, float]] = []
    for run, step in here:
        known = [(x, y) for x, y in eval_points(run) if x <= step and y is not None]
        solved += known[-1:]
    if not solved:
        return "–"
    steps, passed = sorted({x for x, _ in solved}), sorted(y for _, y in solved)
    if len(steps) > 1:  # a mean of measurements taken at different times would say nothing
        return f"{passed[0]:.1f} to {passed[-1]:.1f}% (steps {steps[0]:.0f} to {steps[-1]:.0f})"
    return f"{statistics.fmean(passed):.1f}% (step {steps[0]:.0f})"
