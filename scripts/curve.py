"""Draw held-out accuracy and answer length of runs: scripts/curve.py OUT.png RUN_DIR [RUN_DIR ...]"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def main(out: str, *folders: str) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    for number, folder in enumerate(map(Path, folders)):
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        summary = json.loads((folder / "summary.json").read_text())
        measured = [(r["step"], r["eval/pass@1"], r["eval/greedy"]) for r in rows if "eval/pass@1" in r]
        ends = [
            (at, m["pass@1"], m["greedy"]) for at, m in ((0, summary["before"]), (summary["steps"], summary["after"]))
        ]
        steps, sampled, greedy = zip(*sorted(measured + ends), strict=True)
        first = number == 0
        left.plot(steps, sampled, "o-", color="tab:blue", alpha=0.8, label="sampled (pass@1)" if first else None)
        left.plot(steps, greedy, "s--", color="tab:green", alpha=0.5, label="greedy" if first else None)
        length = [row["completion/length_mean"] for row in rows]
        right.plot([row["step"] for row in rows], length, color="tab:orange", alpha=0.7)
    left.set(title="held-out problems solved", xlabel="step", ylim=(0, 1.05))
    left.legend(loc="lower right", frameon=False)
    right.set(title="characters per answer", xlabel="step", ylim=(0, None))
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
