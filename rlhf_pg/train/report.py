"""One self-contained page about a run, or about several side by side: no network, no script, model text inert."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from rlhf_pg.debug.inspect import visible
from rlhf_pg.train import report_compare, report_curves, report_samples
from rlhf_pg.train.report_charts import Chart
from rlhf_pg.train.report_figures import BOUNDS, compact, counted, eval_names, number
from rlhf_pg.train.report_notices import CHECKED, Notice, late, notices, outcome_totals, values
from rlhf_pg.train.report_run import Run, dig, read, samples_seen, seconds_spent, section


@dataclass(frozen=True)
class Card:
    """One figure of the headline: `value` with its interval or another `note`, and what it was `before`."""

    label: str
    value: str
    note: str = ""
    before: str = ""
    before_note: str = ""


@dataclass(frozen=True)
class Bar:
    """One bar of pass@k, in percent of the axis."""

    label: str  # when it was measured
    last: int  # 0 = the earlier measurement, 1 = the later
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Page:
    title: str
    subtitle: list[str]
    notices: list[tuple[str, list[Notice]]]  # per run; the name is "" for a single run
    cards: list[Card] = field(default_factory=list)
    bars: list[tuple[str, list[Bar]]] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)  # titles of charts without data
    outcomes: list[tuple[str, str, str]] = field(default_factory=list)  # name, count, share
    samples: list[tuple[str, list[report_samples.Shown]]] = field(default_factory=list)
    tables: list[report_compare.Table] = field(default_factory=list)
    configs: list[tuple[str, str]] = field(default_factory=list)  # run name, text of config.yaml
    checked: str = CHECKED


def write(run_dirs: Sequence[Path], out: Path | None = None) -> Path:
    """Write the report of one run directory, or the comparison of several, and return its path.

    Default path: report.html in the first directory. A run still going or killed is reported as far as it got. Raises
    ValueError when no directory is given, one does not exist, or one holds nothing that a run writes.
    """
    if not run_dirs:
        raise ValueError("no run directory given: rlhf-pg report RUN_DIR [RUN_DIR ...]")
    paths = [Path(path) for path in run_dirs]
    runs = [read(path, name) for path, name in zip(paths, _names(paths), strict=True)]
    page = single(runs[0]) if len(runs) == 1 else comparison(runs)
    environment = Environment(
        loader=PackageLoader("rlhf_pg.train", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    html = environment.get_template("report_page.html").render(page=page)
    target = Path(out) if out is not None else paths[0] / "report.html"
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    partial.write_text(html, encoding="utf-8", errors="backslashreplace")
    partial.replace(target)
    return target


def single(run: Run) -> Page:
    """The page of one run."""
    samples = report_samples.choose(run)  # before the notices: unreadable rows are found here
    charts, absent = report_curves.curves(run)
    totals = outcome_totals(run)
    everything = sum(totals.values())
    return Page(
        title=visible(run.name),
        subtitle=_subtitle(run),
        notices=[("", notices(run))],
        cards=cards(run),
        bars=bars(run),
        charts=charts,
        absent=absent,
        outcomes=[(visible(name), f"{n:,.0f}", f"{n / everything:.1%}") for name, n in totals.items() if n],
        samples=samples,
        configs=[("", visible(run.config_text, keep="\n"))] if run.config_text else [],
    )


def comparison(runs: list[Run]) -> Page:
    """The page of several runs."""
    charts, absent = report_curves.overlays(runs)
    return Page(
        title=f"{len(runs)} runs compared",
        subtitle=[visible(run.name) for run in runs],
        notices=[(visible(run.name), notices(run)) for run in runs],
        charts=charts,
        absent=absent,
        tables=report_compare.tables(runs),
        configs=[(visible(run.name), visible(run.config_text, keep="\n")) for run in runs if run.config_text],
    )


def cards(run: Run) -> list[Card]:
    """Held-out figures before and after, then reward, time and samples."""
    (was, before), (_, after) = evals(run)
    out = []
    for name in eval_names(before, after):
        label = f"held-out {visible(name)}"
        if name in after:
            past = f"{percent(before, name)} ({was})" if name in before else ""
            out.append(Card(label, percent(after, name), interval(after, name), past, interval(before, name)))
        else:
            out.append(Card(f"{label} {was}", percent(before, name), interval(before, name)))
    reward = values(run, "reward/mean")
    if reward:
        first = f"{late(reward[::-1]):.3f} in the first" if len(reward) > 1 else ""
        out.append(Card("training reward", f"{late(reward):.3f}", "last tenth of steps" if first else "", first))
    wall, samples = number(run.summary, "wall_s"), number(run.summary, "samples")
    seconds = wall if wall is not None else max(seconds_spent(run).values(), default=None)
    out.append(Card("wall time" if wall is not None else "time in steps", words(seconds)))
    seen = samples if samples is not None else max(samples_seen(run).values(), default=None)
    out.append(Card("samples", compact(seen), f"in {counted(len(run.steps), 'step')}"))
    return out


def evals(run: Run) -> tuple[tuple[str, dict[str, Any]], tuple[str, dict[str, Any]]]:
    """Two held-out measurements, each (when, figures).

    "before" and "after" from the summary; else the first and the last of metrics.jsonl, their "when" being "step 20".
    """
    logged = [
        (f"step {row['step']}", {k.removeprefix("eval/"): v for k, v in row.items() if k.startswith("eval/")})
        for row in run.steps
        if any(k.startswith("eval/") for k in row)
    ]
    before, after = section(run, "before"), section(run, "after")
    first = ("before", before) if before or len(logged) < 2 else logged[0]
    return first, ("after", after) if after or not logged else logged[-1]


def bars(run: Run) -> list[tuple[str, list[Bar]]]:
    """[("held-out pass@1", [first, last]), ...]; empty when nothing was evaluated."""
    both = evals(run)
    groups = []
    for name in eval_names(*(figures for _, figures in both)):
        group = [
            Bar(when, last, value * 100, *(_percent(found, f"{name}{b}") for b in BOUNDS))
            for last, (when, found) in enumerate(both)
            if (value := number(found, name)) is not None and 0 <= value <= 1
        ]
        if group:
            groups.append((f"held-out {visible(name)}", group))
    return groups


def percent(figures: dict[str, Any], name: str) -> str:
    value = _percent(figures, name)
    return "–" if value is None else f"{value:.1f}%"


def interval(figures: dict[str, Any], name: str) -> str:
    """ "87.8 – 92.3", or "" when the figure has no interval."""
    low, high = _percent(figures, f"{name}_low"), _percent(figures, f"{name}_high")
    return "" if low is None or high is None else f"{low:.1f} – {high:.1f}"


def words(seconds: float | None) -> str:
    """301.4 -> "5 min 1 s", 7384 -> "2 h 3 min"."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _percent(figures: dict[str, Any], name: str) -> float | None:
    value = number(figures, name)
    return value * 100 if value is not None and math.isfinite(value) else None


def _subtitle(run: Run) -> list[str]:
    algorithm = run.summary.get("algorithm") or dig(run.config, "algorithm.name")
    data = dig(run.config, "data.train", {})
    source = (
        next((data[k] for k in ("task", "dataset", "path") if data.get(k)), None) if isinstance(data, dict) else None
    )
    planned = dig(run.config, "run.steps")
    done = run.steps[-1]["step"] if run.steps else 0
    steps = f"{done:,} of {counted(planned, 'step')}" if isinstance(planned, int) else counted(done, "step")
    parts = [algorithm, dig(run.config, "model.path"), source, steps, "" if run.summary else "unfinished"]
    return [visible(str(part)) for part in parts if part]


def _names(paths: list[Path]) -> list[str]:
    """Folder names, with as much of the path in front as tells them apart."""
    parts = [path.resolve().parts for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{'/'.join(p[-1:])} ({i + 1})" for i, p in enumerate(parts)]
