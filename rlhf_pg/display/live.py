"""The live view of a run: one panel on a terminal, one plain line per step anywhere else.

The loop only stores numbers here; the panel is drawn by rich's refresh thread twice a second.
"""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from typing import Any, Literal, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rlhf_pg.display.figures import clock, compact, eval_text, number, shown, tokens_per_second
from rlhf_pg.display.live_rows import EXPLAINED, IMITATION, distances, metric_rows, sample_rows
from rlhf_pg.display.text import visible

Phase = Literal["rollout", "reward", "update", "eval", "checkpoint"]
BARS = "▁▂▃▄▅▆▇█"
SPINNER = "◐◓◑◒"
LINE_EVERY_S = 1.5  # plain mode: at most one step line in so many seconds
HEARTBEAT_S = 30.0  # plain mode: a sign of life inside a long phase


class LiveView:
    """The view of one run: `on` draws the panel, `off` is silent but for warnings, `auto` draws it on a terminal only.

    Steps count from 1 to `total_steps`. Metrics are a line of metrics.jsonl; missing, None and NaN values are shown as
    such and never raise. Samples are rows of rollouts/*.jsonl; control characters in their text are made visible.
    """

    def __init__(self, total_steps: int, mode: str = "auto", console: Console | None = None):
        if mode not in ("auto", "on", "off"):
            raise ValueError(f"log.live is {mode!r}: choose auto, on or off")
        self.total_steps = total_steps
        self.metrics: dict[str, Any] = {}
        self.evals: dict[str, Any] = {}  # the latest of each eval/*
        self.samples: list[dict[str, Any]] = []
        self.step = 0
        self.curve = Curve()
        self._console = console or Console()
        drawable = self._console.is_terminal and not self._console.is_dumb_terminal
        self._panel = mode == "on" or (mode == "auto" and drawable and "utf" in self._console.encoding.lower())
        self._silent = mode == "off"
        self._live: Live | None = None
        self._phase: tuple[str, float] | None = None  # name, start
        self._progress: tuple[int, int, int] = (0, 0, 0)  # rows done, rows, tokens
        self._began = time.monotonic()
        self._finished: deque[float] = deque(maxlen=50)  # times at which the last steps ended, for the ETA
        self._pending = ""  # a step's line that was not printed yet, since LINE_EVERY_S had not passed
        self._last_line = -math.inf
        self._last_beat = self._began

    def __enter__(self) -> Self:
        self._began = self._last_beat = time.monotonic()
        if self._panel and not self._silent:
            self._live = Live(get_renderable=self.render, console=self._console, refresh_per_second=2)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Draw the panel for the last time: what is said from here on comes below it. A second call does nothing."""
        self._phase = None
        if self._live is not None:
            self._live.stop()
            self._live = None
            self._console.print()
        elif self._pending:
            self._print(self._pending)
            self._pending = ""

    def start_step(self, step: int) -> None:
        if not self._finished:
            self._finished.append(time.monotonic())
        self.step = step

    def phase(self, name: Phase) -> None:
        self._phase = (name, time.monotonic())
        self._progress = (0, 0, 0)

    def progress(self, done: int, total: int, tokens: int = 0) -> None:
        """Store the rows `done` of `total` in the current phase, and the tokens it has produced since it began."""
        self._progress = (done, total, tokens)
        now = time.monotonic()
        if not self._panel and now - max(self._last_beat, self._last_line) >= HEARTBEAT_S and self._phase:
            self._last_beat = now
            self._print(
                f"step {self.step:>5}/{self.total_steps}  {self._phase[0]} {done}/{total} rows{self._rate('  ')}"
            )

    def finish_step(self, metrics: dict[str, Any], samples: list[dict[str, Any]]) -> None:
        now = time.monotonic()
        evals = {k: v for k, v in metrics.items() if k.startswith("eval/")}
        self.metrics, self.samples = dict(metrics), list(samples) or self.samples  # copies: another thread reads
        self.evals = {**self.evals, **evals}
        self.curve.add(number(metrics, "reward/mean" if "reward/mean" in metrics else "loss"))
        self._finished.append(now)
        self._phase = None
        if self._panel or self._silent:
            return
        line = self._line(metrics)
        if now - self._last_line < LINE_EVERY_S and not evals and self.step < self.total_steps:
            self._pending = line
            return
        self._last_line, self._pending = now, ""
        self._print(line)

    def message(self, text: str) -> None:
        """Print one line above the panel, or a plain line."""
        self._print(visible(text, keep="\n"))

    def warning(self, text: str) -> None:
        """Print a line of its own that begins with "warning: "; where the view is silent, to stderr."""
        line = f"warning: {visible(text)}"
        if self._silent:
            print(line, file=sys.stderr, flush=True)
        else:
            self._print(line, style="yellow")

    def eta_s(self) -> float | None:
        """Return the seconds left at the pace of the last steps; None before the first has ended."""
        if len(self._finished) < 2:
            return None
        pace = (self._finished[-1] - self._finished[0]) / (len(self._finished) - 1)
        return pace * max(self.total_steps - self.step, 0)

    def _rate(self, lead: str) -> str:
        tokens, phase = self._progress[2], self._phase
        since = phase[1] if phase else self._began
        return f"{lead}{compact(tokens / max(time.monotonic() - since, 1e-3))} tok/s" if tokens else ""

    def _print(self, text: str, style: str = "") -> None:
        if self._silent:
            return
        if self._live is not None:
            self._console.print(Text(text, style=style))
            return
        encoding = getattr(self._console.file, "encoding", None) or "utf-8"
        try:
            self._console.file.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
            self._console.file.flush()
        except OSError as error:  # the reader of the log left, or its disk is full: the run must not die of it
            self._silent = True
            print(f"log output stopped: {error}", file=sys.stderr)

    def _line(self, metrics: dict[str, Any]) -> str:
        step = f"step {self.step:>5}/{self.total_steps}"
        if "reward/mean" not in metrics and "loss" in metrics:  # supervised fine-tuning
            figures = [f"{name} {shown(metrics, key, form)}" for name, key, form in IMITATION]
            return "  ".join([step, *figures, f"eta {clock(self.eta_s())}"])
        parts = [
            step,
            f"reward {shown(metrics, 'reward/mean')} sd {shown(metrics, 'reward/std', '.2f')}",
            *(f"{label} {value}" for label, value in distances(metrics)),
            f"entropy {shown(metrics, 'entropy', '.2f')}",
            *([f"ev {shown(metrics, EXPLAINED, '.2f')}"] if EXPLAINED in metrics else []),
            *(["refused"] if number(metrics, "trust/accepted") == 0 else []),
            f"len {shown(metrics, 'completion/length_mean', '.0f')}",
            f"trunc {shown(metrics, 'completion/truncated', '.0%')}",
            f"{compact(tokens_per_second(metrics))} tok/s",
            f"{shown(metrics, 'time/step_s', '.2f')}s",
            f"eta {clock(self.eta_s())}",
        ]
        if any(k.startswith("eval/") for k in metrics):
            parts.append(f"| {eval_text(metrics)}")
        return "  ".join(parts)

    def render(self) -> RenderableType:
        """Return the panel as of now."""
        parts: list[RenderableType] = [self._progress_row(), self._phase_row(), Text()]
        if self.metrics:
            parts += metric_rows(self.metrics, self.evals, self.curve.sparkline())
        parts += sample_rows(self.samples)
        title = Text.assemble((" rlhf_pg ", "bold"), (f"{clock(time.monotonic() - self._began)} ", "dim"))
        return Panel(Group(*parts), title=title, title_align="left", border_style="dim", padding=(0, 1))

    def _progress_row(self) -> Table:
        share = self.step / self.total_steps if self.total_steps else 1.0
        row = Table.grid(padding=(0, 1), expand=True)
        row.add_column(no_wrap=True)
        row.add_column(ratio=1)
        row.add_column(no_wrap=True, justify="right")
        bar = ProgressBar(
            total=max(self.total_steps, 1), completed=self.step, complete_style="cyan", finished_style="green"
        )
        row.add_row(f"step {self.step}/{self.total_steps}", bar, f"{share:4.0%}  {clock(self.eta_s())} left")
        return row

    def _phase_row(self) -> Text:
        phase = self._phase  # read once: the loop may end the phase meanwhile
        if phase is None:
            return Text("·", style="dim")
        name, since = phase
        seconds = time.monotonic() - since
        done, total, _ = self._progress
        rows = f"  {done}/{total} rows" if total else ""
        return Text.assemble(
            (SPINNER[int(seconds * 4) % 4] + " ", "cyan"),
            (name, "bold cyan"),
            f"{rows}{self._rate('  ')}  {seconds:.1f} s",
        )


class Curve:
    """A series of any length as at most `size` means, for a sparkline: O(1) per value."""

    def __init__(self, size: int = 80):
        self.size, self.stride = size, 1
        self.means: list[float] = []
        self._open: list[float] = []

    def add(self, value: float | None) -> None:
        if value is None or not math.isfinite(value):
            return
        self._open.append(value)
        if len(self._open) < self.stride:
            return
        self.means.append(sum(self._open) / len(self._open))
        self._open = []
        if len(self.means) == self.size:
            self.means = [(a + b) / 2 for a, b in zip(self.means[::2], self.means[1::2], strict=True)]
            self.stride *= 2

    def sparkline(self, width: int = 40) -> str:
        """Return the curve as at most `width` block characters; "" when empty."""
        last = list(self._open)  # a copy: the loop's thread may add meanwhile
        values = [*self.means, *([sum(last) / len(last)] if last else [])]
        while len(values) > width:
            values = [sum(pair) / len(pair) for pair in (values[i : i + 2] for i in range(0, len(values), 2))]
        low, high = (min(values), max(values)) if values else (0.0, 0.0)
        scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
        return "".join(BARS[round((v - low) * scale)] for v in values)
