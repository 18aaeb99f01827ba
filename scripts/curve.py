"""Draw held-out accuracy and answer length of runs: scripts/curve.py OUT.png RUN_DIR [RUN_DIR ...]"""

from __future__ import annotations

import sys
from pathlib import Path

from rlhf_pg.display.pictures import BLUE, GREEN, ORANGE, panels, png
from rlhf_pg.report.measures import eval_points
from rlhf_pg.report.run_record import read

LINES = (("pass@1", "sampled (pass@1)", "o-", BLUE), ("greedy", "greedy", "s--", GREEN))


def main(out: str, *folders: str) -> None:
    figure, ((left, right),) = panels(1, 2, 9, 3, grid="both")
    for run in map(read, map(Path, folders)):
        for name, label, style, color in LINES:
            if points := eval_points(run, name):
                left.plot(*zip(*points, strict=True), style, color=color, alpha=0.7, label=label)
        right.plot(*zip(*run.series("completion/length_mean"), strict=True), color=ORANGE, alpha=0.7)
    lines, labels = left.get_legend_handles_labels()
    first = dict(zip(reversed(labels), reversed(lines), strict=True))  # one entry for the same line of several runs
    left.legend(first.values(), first.keys(), loc="lower right", frameon=False)
    left.set(title="held-out problems solved, %", xlabel="step", ylim=(0, 105))
    right.set(title="tokens per answer", xlabel="step", ylim=(0, None))
    Path(out).write_bytes(png(figure))


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
