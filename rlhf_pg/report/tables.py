"""Tables of several runs: how they ended, what they cost, equal budgets, seeds, and where their recipes differ."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from rlhf_pg.display.figures import clock, compact, cut, eval_names, number
from rlhf_pg.display.text import visible
from rlhf_pg.report import measures
from rlhf_pg.report.charts import smooth
from rlhf_pg.report.measures import eval_points, final_evaluation, late, samples_seen, seconds_spent
from rlhf_pg.report.run_record import RunRecord
from rlhf_pg.report.seed_groups import NOT_RECIPE, SeedGroup, flat

Column = tuple[str, Callable[[SeedGroup], str]]  # its head, and its cell of a recipe


@dataclass(frozen=True)
class Table:
    title: str
    note: str
    head: list[str]
    rows: list[list[str]]
    colors: list[tuple[int, bool]] = field(default_factory=list)  # of the rows: colour, and whether lines are broken
    wraps: bool = False  # long cells are broken, in place of a table to scroll sideways


def tables(groups: list[SeedGroup]) -> tuple[list[Table], list[Table]]:
    """Return those to be read first, and those to look things up in; only those that have a row."""
    several = any(len(group.runs) > 1 for group in groups)
    single_runs = [replace(group, label=visible(run.name), runs=[run]) for group in groups for run in group.runs]
    first = [final_figures(groups), over_seeds(groups) if several else None, cost(groups)]
    later = [
        equal("samples", samples_seen, compact, groups),
        equal("seconds in steps", seconds_spent, clock, groups),
        replace(final_figures(single_runs), title="Every run") if several else None,
        recipe_differences(groups),
    ]
    return [t for t in first if t and t.rows], [t for t in later if t and t.rows]


def final_figures(groups: list[SeedGroup]) -> Table:
    """Return one row per recipe, as it ended or as far as it got."""
    runs = [run for group in groups for run in group.runs]
    referenced = any(run.values("kl/ref") for run in runs)
    reference: Column = ("KL to ref.", lambda group: _mean(group, lambda run: late(run.values("kl/ref")), "{:.3g}"))
    columns: list[Column] = [
        ("algorithm", lambda group: _distinct(group, measures.algorithm)),
        ("steps", lambda group: _mean(group, lambda run: run.last_step if run.steps else None, "{:.0f}")),
        ("samples", lambda group: compact(_average(group.each(_samples))).replace("-", "–")),
        ("reward", lambda group: _mean(group, _late_reward, "{:.3f}")),
        *([reference] if referenced else []),
        ("KL moved", lambda group: _mean(group, _kl_moved, "{:.3g}")),
        *(
            (visible(name), lambda group, name=name: _change(group, name))
            for name in eval_names(*(final_evaluation(run)[1] for run in runs))
        ),
    ]
    and_kl = " and KL to the reference" if referenced else ""
    note = f"reward{and_kl}: mean of the last tenth of the steps; KL moved: of every step, summed"
    means = "; of several seeds the mean" if len(runs) > len(groups) else ""
    return _table("Final figures", note + means, columns, groups)


def over_seeds(groups: list[SeedGroup]) -> Table:
    """Return how far the seeds of each recipe lie apart."""

    def pass_at_1(run: RunRecord) -> float | None:
        solved = number(final_evaluation(run)[1], "pass@1")
        return None if solved is None else 100 * solved

    rows = []
    for group in groups:
        spread = [*_range(group, _late_reward, "{:.3f}"), *_range(group, pass_at_1, "{:.1f}%")]
        rows.append([group.label, str(len(group.runs)), *spread])
    head = ["run", "seeds", "reward, mean", "lowest", "highest", "pass@1, mean", "lowest", "highest"]
    return Table("Over seeds", "reward: mean of the last tenth of the steps", head, rows, _colors(groups))


def cost(groups: list[SeedGroup]) -> Table:
    """Return what each recipe took: time, memory, and the critic that takes a part of both."""
    columns: list[Column] = [
        ("algorithm", lambda group: _distinct(group, measures.algorithm)),
        ("critic", lambda group: _distinct(group, measures.critic)),
        ("peak memory", lambda group: _mean(group, measures.peak_memory, "{:,.2f} GiB")),
        ("seconds per step", lambda group: _mean(group, measures.step_seconds, "{:.2f} s")),
        ("update share", lambda group: _mean(group, measures.update_share, "{:.0%}")),
        ("optimizer steps", lambda group: _mean(group, measures.optimizer_steps, "{:,.0f}")),
        ("wall time", _wall_time),
    ]
    note = "seconds per step: median; update share: of all seconds in steps; wall time: with evaluation"
    return _table("Cost", note, columns, groups)


def equal(
    what: str,
    spent: Callable[[RunRecord], dict[float, float]],
    text: Callable[[float], str],
    groups: list[SeedGroup],
) -> Table | None:
    """Return every run at the largest amount of `what` (step -> amount so far) that all reached; None if that is 0."""
    budget = min((max(spent(run).values(), default=0.0) for group in groups for run in group.runs), default=0.0)
    if budget <= 0:
        return None
    by_samples = spent is samples_seen
    other, other_text = (seconds_spent, clock) if by_samples else (samples_seen, compact)
    rows = []
    for group in groups:
        latest = [(run, max((s for s, n in spent(run).items() if n <= budget), default=None)) for run in group.runs]
        reached = [(run, step) for run, step in latest if step is not None]
        rewards = [y for run, step in reached if (y := _reward_at(run, step)) is not None]
        rows.append(
            [
                group.label,
                f"{statistics.fmean(step for _, step in reached):.0f}" if reached else "–",
                other_text(statistics.fmean(other(run)[step] for run, step in reached)) if reached else "–",
                f"{statistics.fmean(rewards):.3f}" if rewards else "–",
                _solved_by(reached),
            ]
        )
    other_head = "seconds in steps" if by_samples else "samples"
    head = ["run", "step", other_head, "reward, smoothed", "latest held-out pass@1"]
    return Table(f"At equal {what}: {text(budget)}", "the most that every run reached", head, rows, _colors(groups))


def recipe_differences(groups: list[SeedGroup]) -> Table | None:
    """Return the recipe keys on which recipes differ, but for the run directory and seeds that make no recipe."""
    recipes = [dict(flat(group.runs[0].config)) for group in groups]
    if not all(recipes):
        return None
    seeds = any(len(group.runs) > 1 for group in groups)
    idle = NOT_RECIPE if seeds else ("run.dir",)
    keys = sorted({key for recipe in recipes for key in recipe if not key.startswith(idle)})
    rows = [
        [visible(key), *(visible(cut(str(recipe.get(key, "–")), 120)) for recipe in recipes)]
        for key in keys
        if len({str(recipe.get(key)) for recipe in recipes}) > 1
    ]
    return Table("Recipes differ in", "", ["key", *(group.label for group in groups)], rows)


def launches(run: RunRecord) -> Table | None:
    """Return what ran, a column for each launch of a run."""
    if not run.launches:
        return None
    columns = [dict(_flat_launch(launch)) for launch in run.launches]
    head = ["", *(f"from step {launch.get('from_step', '–')}" for launch in run.launches)]
    rows = [[visible(key), *(visible(column.get(key, "–")) for column in columns)] for key in _keys(columns)]
    return Table("What ran", "", head if len(columns) > 1 else [], rows, wraps=True)


def launch_differences(runs: list[RunRecord]) -> Table | None:
    """Return where the last launches of runs differ in more than time and command."""
    if not all(run.launches for run in runs):
        return None
    columns = [dict(_flat_launch(run.launches[-1])) for run in runs]
    rows = [
        [visible(key), *(visible(column.get(key, "–")) for column in columns)]
        for key in _keys(columns)
        if key not in ("started", "command", "seed") and len({column.get(key) for column in columns}) > 1
    ]
    return Table("Launches differ in", "", ["", *(visible(run.name) for run in runs)], rows, wraps=True)


def _flat_launch(launch: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield a launch's facts as text; commit and versions in one line each."""
    for key, value in launch.items():
        if key == "git":
            state = value if isinstance(value, dict) else {}
            changed = ", with changes that were not committed" if state.get("dirty") else ""
            yield "commit", f"{state.get('commit', 'none')}{changed}"
        elif isinstance(value, dict):
            yield key, ", ".join(f"{name} {version}" for name, version in value.items())
        elif key != "from_step":
            yield key, str(value)


def _keys(columns: list[dict[str, str]]) -> list[str]:
    return list(dict.fromkeys(key for column in columns for key in column))


def _table(title: str, note: str, columns: list[Column], groups: list[SeedGroup]) -> Table:
    rows = [[group.label, *(cell(group) for _, cell in columns)] for group in groups]
    return Table(title, note, ["run", *(head for head, _ in columns)], rows, _colors(groups))


def _colors(groups: list[SeedGroup]) -> list[tuple[int, bool]]:
    return [(group.color, group.again) for group in groups]


def _distinct(group: SeedGroup, measure: Callable[[RunRecord], str]) -> str:
    return ", ".join(dict.fromkeys(measure(run) for run in group.runs))


def _average(values: list[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _mean(group: SeedGroup, measure: Callable[[RunRecord], float | None], form: str) -> str:
    value = _average(group.each(measure))
    return "–" if value is None else form.format(value)


def _range(group: SeedGroup, measure: Callable[[RunRecord], float | None], form: str) -> list[str]:
    """Return mean, lowest, highest."""
    values = group.each(measure)
    return [form.format(v) for v in (statistics.fmean(values), min(values), max(values))] if values else ["–"] * 3


def _late_reward(run: RunRecord) -> float | None:
    return late(run.values("reward/mean"))


def _samples(run: RunRecord) -> float | None:
    samples = number(run.summary, "samples")
    return samples if samples is not None else max(samples_seen(run).values(), default=None)


def _kl_moved(run: RunRecord) -> float | None:
    path = measures.kl_moved(run)
    return path[-1][1] if path else None


def _wall_time(group: SeedGroup) -> str:
    seconds = group.each(lambda run: number(run.summary, "wall_s"))
    return clock(statistics.fmean(seconds)) if len(seconds) == len(group.runs) else "unfinished"


def _change(group: SeedGroup, name: str) -> str:
    """Return "37.0 → 95.3%", and the step of the measurement when it is not the one after training."""
    finals = [(when, number(figures, name)) for when, figures in map(final_evaluation, group.runs)]
    finals = [(when, value) for when, value in finals if value is not None]
    if not finals:
        return "–"
    before = group.each(lambda run: number(run.evaluation("before"), name))
    start = f"{statistics.fmean(before) * 100:.1f} → " if before else ""
    whens = "".join(sorted({when for when, _ in finals}))
    return f"{start}{statistics.fmean(value for _, value in finals) * 100:.1f}%{whens}"


def _reward_at(run: RunRecord, step: float) -> float | None:
    reward = smooth([point for point in run.series("reward/mean") if point[0] <= step])
    return next((y for _, y in reversed(reward) if y is not None), None)


def _solved_by(reached: list[tuple[RunRecord, float]]) -> str:
    """Return "88.7% (step 100)": the latest held-out pass@1 that the runs had by their steps, of several the mean."""
    latest: list[tuple[float, float]] = []
    for run, step in reached:
        latest += [(x, y) for x, y in eval_points(run) if x <= step and y is not None][-1:]
    if not latest:
        return "–"
    steps, passed = sorted({x for x, _ in latest}), sorted(y for _, y in latest)
    if len(steps) > 1:  # a mean of measurements taken at different times would say nothing
        return f"{passed[0]:.1f} to {passed[-1]:.1f}% (steps {steps[0]:.0f} to {steps[-1]:.0f})"
    return f"{statistics.fmean(passed):.1f}% (step {steps[0]:.0f})"
