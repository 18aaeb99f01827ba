"""Tables of several runs: final figures, figures at equal samples, and where their recipes differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlhf_pg.debug.inspect import visible
from rlhf_pg.train.report_charts import smooth
from rlhf_pg.train.report_curves import eval_points
from rlhf_pg.train.report_figures import clock, compact, cut, eval_names, number
from rlhf_pg.train.report_notices import late, values
from rlhf_pg.train.report_run import Run, dig, samples_seen, seconds_spent, section, series


@dataclass(frozen=True)
class Table:
    title: str
    note: str
    head: list[str]
    rows: list[list[str]]


def tables(runs: list[Run]) -> list[Table]:
    """Those tables that have a row."""
    return [t for t in (final(runs), equal_samples(runs), recipe_differences(runs)) if t and t.rows]


def final(runs: list[Run]) -> Table:
    """One row per run, as it ended or as far as it got."""
    ks = eval_names(*(section(run, "after") for run in runs))
    head = ["run", "algorithm", "steps", "samples", "wall time", "reward", "KL", *(visible(k) for k in ks)]
    return Table(
        "Final figures", "reward and KL: mean of the last tenth of the steps", head, [_final(r, ks) for r in runs]
    )


def equal_samples(runs: list[Run]) -> Table | None:
    """Every run at the largest number of samples that all of them reached; None when that is nothing."""
    reached = [max(samples_seen(run).values(), default=0.0) for run in runs]
    budget = min(reached)
    if budget <= 0:
        return None
    rows = []
    for run in runs:
        seen = samples_seen(run)
        step = max((s for s, n in seen.items() if n <= budget), default=None)
        reward = [y for _, y in smooth([p for p in series(run, "reward/mean") if step is not None and p[0] <= step])]
        last = next((y for y in reversed(reward) if y is not None), None)
        solved = [(x, y) for x, y in eval_points(run) if step is not None and x <= step and y is not None]
        rows.append(
            [
                visible(run.name),
                "–" if step is None else f"{step:.0f}",
                "–" if step is None else clock(seconds_spent(run)[step]),
                "–" if last is None else f"{last:.3f}",
                f"{solved[-1][1]:.1f}% (step {solved[-1][0]:.0f})" if solved else "–",
            ]
        )
    head = ["run", "step", "seconds in steps", "reward, smoothed", "latest held-out pass@1"]
    return Table(f"At equal samples: {compact(budget)}", "the most that every run reached", head, rows)


def recipe_differences(runs: list[Run]) -> Table | None:
    """Recipe keys on which the runs differ; the run directory is left out."""
    flat = [dict(_flat(run.config)) for run in runs]
    if not all(flat):
        return None
    keys = sorted({k for f in flat for k in f} - {"run.dir"})
    rows = [
        [visible(k), *(visible(cut(str(f.get(k, "–")), 120)) for f in flat)]
        for k in keys
        if len({str(f.get(k)) for f in flat}) > 1
    ]
    return Table("Recipes differ in", "", ["key", *(visible(run.name) for run in runs)], rows)


def _final(run: Run, ks: list[str]) -> list[str]:
    before, after = section(run, "before"), section(run, "after")
    reward, kl = late(values(run, "reward/mean")), late(values(run, "kl/ref"))
    samples = number(run.summary, "samples")
    wall = number(run.summary, "wall_s")
    return [
        visible(run.name),
        visible(str(run.summary.get("algorithm") or dig(run.config, "algorithm.name", "–"))),
        str(run.steps[-1]["step"]) if run.steps else "–",
        compact(samples if samples is not None else max(samples_seen(run).values(), default=None)),
        clock(wall) if wall is not None else "unfinished",
        "–" if reward is None else f"{reward:.3f}",
        "–" if kl is None else f"{kl:.3g}",
        *(_change(before, after, k) for k in ks),
    ]


def _change(before: dict[str, Any], after: dict[str, Any], key: str) -> str:
    first, last = number(before, key), number(after, key)
    if last is None:
        return "–"
    return f"{last * 100:.1f}%" if first is None else f"{first * 100:.1f} → {last * 100:.1f}%"


def _flat(mapping: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    out = []
    for key, value in mapping.items():
        if isinstance(value, dict) and value:
            out += _flat(value, f"{prefix}{key}.")
        else:
            out.append((f"{prefix}{key}", value))
    return out
