"""One self-contained page about a run, or about several side by side: no network, no script, model text inert."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from rlhf_pg.display.figures import compact, counted, eval_names, number
from rlhf_pg.display.text import visible
from rlhf_pg.report import compare, cost, curves, held_out, overlays
from rlhf_pg.report import samples as report_samples
from rlhf_pg.report.charts import Chart
from rlhf_pg.report.groups import Group, groups, names
from rlhf_pg.report.held_out import Bars, evals, interval, percent
from rlhf_pg.report.notices import CHECKED, Notice, late, merged, notices, outcome_totals, values
from rlhf_pg.report.run_data import Run, dig, read, samples_seen, seconds_spent


@dataclass(frozen=True)
class Card:
    """One figure of the headline: `value` with its interval or another `note`, and what it was `before`."""

    label: str
    value: str
    note: str = ""
    before: str = ""
    before_note: str = ""


@dataclass(frozen=True)
class Page:
    title: str
    subtitle: list[str]
    notices: list[tuple[str, list[Notice]]]  # per run; the name is "" for a single run
    cards: list[Card] = field(default_factory=list)
    bars: list[Bars] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)  # titles of charts without data
    outcomes: list[tuple[str, str, str]] = field(default_factory=list)  # name, count, share
    samples: list[tuple[str, list[report_samples.Shown]]] = field(default_factory=list)
    tables: list[compare.Table] = field(default_factory=list)
    later: list[compare.Table] = field(default_factory=list)
    quiet: str = ""  # runs of a comparison that have no notice
    configs: list[tuple[str, str]] = field(default_factory=list)  # run name, text of config.yaml
    checked: str = CHECKED
    curves_note: str = "Bold: smoothed. Faint: each step. Point at a curve for its values."


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
        loader=PackageLoader("rlhf_pg.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    html = environment.get_template("page.html").render(page=page)
    target = Path(out) if out is not None else paths[0] / "report.html"
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    partial.write_text(html, encoding="utf-8", errors="backslashreplace")
    partial.replace(target)
    return target


def single(run: Run) -> Page:
    """The page of one run."""
    samples = report_samples.choose(run)  # before the notices: unreadable rows are found here
    charts, absent = curves.curves(run)
    totals = outcome_totals(run)
    everything = sum(totals.values())
    return Page(
        title=visible(run.name),
        subtitle=_subtitle(run),
        notices=[("", notices(run))],
        cards=cards(run),
        bars=held_out.bars(run),
        charts=charts,
        absent=absent,
        outcomes=[(visible(name), f"{n:,.0f}", f"{n / everything:.1%}") for name, n in totals.items() if n],
        samples=samples,
        configs=[("", visible(run.config_text, keep="\n"))] if run.config_text else [],
    )


def comparison(runs: list[Run]) -> Page:
    """The page of several runs."""
    together = groups(runs)
    charts, absent = overlays.overlays(together)
    first, later = compare.tables(together)
    told = {run.name: notices(run) for run in runs}
    means = "Bold: mean of the seeds, as far as all of them went; thin: each seed." if len(together) < len(runs) else ""
    recipes = f" of {counted(len(together), 'recipe')}" if len(together) < len(runs) else ""
    return Page(
        title=f"{len(runs)} runs{recipes} compared",
        subtitle=[_seeds(group) for group in together],
        notices=_shared(together, told),
        quiet=names(together, [run for run in runs if not told[run.name]]),
        bars=[box for box in (held_out.compared(together), cost.compared(together)) if box],
        charts=charts,
        absent=absent,
        tables=first,
        later=later,
        curves_note=f"Smoothed. {means} Point at a curve for its values.",
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


def words(seconds: float | None) -> str:
    """301.4 -> "5 min 1 s", 7384 -> "2 h 3 min"."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _shared(together: list[Group], told: dict[str, list[Notice]]) -> list[tuple[str, list[Notice]]]:
    """[(names of runs, their notices)]: what several runs have is said once, under all their names."""
    runs = [run for group in together for run in group.runs]
    return [
        ("every run" if len(who) == len(runs) else names(together, [r for r in runs if r.name in who]), found)
        for who, found in merged(told)
    ]


def _seeds(group: Group) -> str:
    return f"{group.label} ({len(group.runs)} seeds)" if len(group.runs) > 1 else group.label


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
