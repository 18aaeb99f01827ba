"""One self-contained page about a run, or about several side by side: no network, model text inert."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from rlhf_pg import __version__
from rlhf_pg.display.figures import compact, counted, duration, eval_names, number
from rlhf_pg.display.notices import Notice, outcome_totals
from rlhf_pg.display.text import visible
from rlhf_pg.report.bars import Bars, cost_compared, held_out, held_out_compared
from rlhf_pg.report.charts import Chart
from rlhf_pg.report.curves import curves, overlays
from rlhf_pg.report.embedded import embedded
from rlhf_pg.report.measures import (
    evaluations,
    interval_text,
    late,
    percent_text,
    samples_seen,
    seconds_spent,
)
from rlhf_pg.report.notices import CHECKED, merged, notices
from rlhf_pg.report.problems import problems
from rlhf_pg.report.run_record import RunRecord, read
from rlhf_pg.report.samples import Sample, choose
from rlhf_pg.report.seed_groups import SeedGroup, names, seed_groups
from rlhf_pg.report.tables import Table, launch_differences, launches, tables
from rlhf_pg.storage.atomic_io import write_atomic

STYLE, FOLLOW = "page.css", "follow.js"
SCRIPTS = ("charts.js", "tables.js", FOLLOW, "start.js")
SMOOTHING = "an exponential mean over about a twentieth of the steps, at least three"


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
    """What the template draws."""

    title: str
    subtitle: list[str]
    notices: list[tuple[str, list[Notice]]]  # per run; the name is "" for a single run
    cards: list[Card] = field(default_factory=list)
    bars: list[Bars] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    zero: list[str] = field(default_factory=list)  # titles of charts whose every value is 0: not drawn
    absent: list[str] = field(default_factory=list)  # titles of charts without data
    outcomes: list[tuple[str, str, str]] = field(default_factory=list)  # name, count, share
    samples: list[tuple[str, list[Sample]]] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)  # to be read first
    later: list[Table] = field(default_factory=list)  # to look things up in
    launches: list[Table] = field(default_factory=list)
    quiet: str = ""  # runs of a comparison that have no notice
    configs: list[tuple[str, str]] = field(default_factory=list)  # run name, text of config.yaml
    problems: str | None = None  # what became of the held-out problems; None: a page of several runs
    data: dict[str, Any] | None = None  # for the script
    checked: str = CHECKED
    curves_note: str = f"Bold: smoothed, {SMOOTHING}. Faint: each step. Point at a curve for its values."


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
    target = Path(out) if out is not None else paths[0] / "report.html"
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(target, html(page))
    return target


def html(page: Page, live: str = "") -> bytes:
    """Return the page as a file. `live`: the version of a page that is served, and asks for newer ones.

    The browser runs the one script of this package, by its hash, and opens no connection (but those to the server of a
    live page).
    """
    environment = Environment(
        loader=PackageLoader("rlhf_pg.report", "page"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    sources = {name: files("rlhf_pg.report").joinpath("page", name).read_text("utf-8") for name in (*SCRIPTS, STYLE)}
    script = "".join(sources[name] for name in SCRIPTS if live or name != FOLLOW)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    connect = "; connect-src 'self'" if live else ""
    text = environment.get_template("page.html").render(
        page=page,
        live=bool(live),
        version=live,
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'{connect}",
        style=sources[STYLE],
        script=script,
        package_version=__version__,
        written=datetime.now(UTC).isoformat(" ", timespec="minutes").replace("+00:00", " UTC"),
    )
    return text.encode("utf-8", "backslashreplace")


def single(run: RunRecord) -> Page:
    """Return the page of one run."""
    samples = choose(run)  # before the notices: unreadable rows are counted here
    charts, absent = curves(run)
    held_out_problems = problems(run)
    data = embedded(run, held_out_problems)
    totals = outcome_totals(run.steps)
    count = sum(totals.values())
    return Page(
        title=visible(run.name),
        subtitle=_subtitle(run),
        notices=[("", notices(run))],
        cards=cards(run),
        bars=[box for box in [held_out(run)] if box],
        charts=[chart for chart in charts if not chart.always_zero],
        zero=[chart.title for chart in charts if chart.always_zero],
        absent=absent,
        problems=held_out_problems.summary(),
        data=data,
        outcomes=[(visible(name), f"{n:,.0f}", f"{n / count:.1%}") for name, n in totals.items() if n],
        samples=samples,
        launches=[table for table in [launches(run)] if table],
        configs=[("", visible(run.config_text, keep="\n"))] if run.config_text else [],
    )


def comparison(runs: list[RunRecord]) -> Page:
    """Return the page of several runs."""
    groups = seed_groups(runs)
    charts, absent = overlays(groups)
    first, later = tables(groups)
    notices_of_runs = {run.name: notices(run) for run in runs}
    seeded = len(groups) < len(runs)
    means = "Bold: mean of the seeds, as far as all of them went; thin: each seed. " if seeded else ""
    recipes = f" of {counted(len(groups), 'recipe')}" if seeded else ""
    return Page(
        title=f"{len(runs)} runs{recipes} compared",
        subtitle=[f"{g.label} ({len(g.runs)} seeds)" if len(g.runs) > 1 else g.label for g in groups],
        notices=_shared(groups, notices_of_runs),
        quiet=names(groups, [run for run in runs if not notices_of_runs[run.name]]),
        bars=[box for box in (held_out_compared(groups), cost_compared(groups)) if box],
        charts=[chart for chart in charts if not chart.always_zero],
        zero=[chart.title for chart in charts if chart.always_zero],
        absent=absent,
        tables=first,
        later=later,
        launches=[table for table in [launch_differences(runs)] if table and table.rows],
        curves_note=f"Smoothed, {SMOOTHING}. {means}Point at a curve for its values.",
        configs=[(visible(run.name), visible(run.config_text, keep="\n")) for run in runs if run.config_text],
    )


def cards(run: RunRecord) -> list[Card]:
    """Return held-out figures before and after, then reward, time and samples."""
    if not run.steps and not run.summary:
        return []
    (was, before), (_, after) = evaluations(run)
    headline = []
    for name in eval_names(before, after):
        label = f"held-out {visible(name)}"
        if name in after:
            past = f"{percent_text(before, name)} ({was})" if name in before else ""
            values = percent_text(after, name), interval_text(after, name), past, interval_text(before, name)
            headline.append(Card(label, *values))
        else:
            headline.append(Card(f"{label} {was}", percent_text(before, name), interval_text(before, name)))
    reward = run.values("reward/mean")
    if reward:
        first = f"{late(reward[::-1]):.3f} in the first" if len(reward) > 1 else ""
        headline.append(Card("training reward", f"{late(reward):.3f}", "last tenth of steps" if first else "", first))
    wall, samples = number(run.summary, "wall_s"), number(run.summary, "samples")
    seconds = wall if wall is not None else max(seconds_spent(run).values(), default=None)
    headline.append(Card("wall time" if wall is not None else "time in steps", duration(seconds)))
    seen = samples if samples is not None else max(samples_seen(run).values(), default=None)
    headline.append(Card("samples", compact(seen).replace("-", "–"), f"in {counted(len(run.steps), 'step')}"))
    return headline


def _shared(groups: list[SeedGroup], notices_of_runs: dict[str, list[Notice]]) -> list[tuple[str, list[Notice]]]:
    """Return [(names of runs, their notices)]: what several runs have is said once, under all their names."""
    runs = [run for group in groups for run in group.runs]
    return [
        ("every run" if len(who) == len(runs) else names(groups, [run for run in runs if run.name in who]), shared)
        for who, shared in merged(notices_of_runs)
    ]


def _subtitle(run: RunRecord) -> list[str]:
    data = run.setting("data.train", {})
    data = data if isinstance(data, dict) else {}
    source = next((data[key] for key in ("task", "dataset", "path") if data.get(key)), None)
    source = ", ".join(map(str, source)) if isinstance(source, list) else source
    planned = run.setting("run.steps")
    steps = counted(run.last_step, "step")
    if isinstance(planned, int):
        steps = f"{run.last_step:,} of {counted(planned, 'step')}"
    name = run.summary.get("algorithm") or run.setting("algorithm.name")
    parts = [name, run.setting("model.path"), source, steps, "" if run.summary else "unfinished"]
    return [visible(str(part)) for part in parts if part]


def _names(paths: list[Path]) -> list[str]:
    """Return folder names, with as much of the path in front as tells them apart."""
    parts = [path.resolve().parts for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        tails = ["/".join(p[-depth:]) for p in parts]
        if len(set(tails)) == len(tails):
            return tails
    return [f"{'/'.join(p[-1:])} ({i + 1})" for i, p in enumerate(parts)]
