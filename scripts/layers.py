"""Who may import whom: the one place where it is written. `python scripts/layers.py` draws it in docs/architecture.md.

A folder may import the folders named for it, function-level imports and those for type checkers included, and nothing
else of rlhf_pg. tests/test_layers.py holds the sources to it, both ways: an arrow that no import needs goes.
"""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"
EVERYWHERE = ("types", "errors", "names")  # single files without logic of their own: they import nothing of rlhf_pg

MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "cli": ("commands", "display"),
    "api": ("commands", "config", "display", "report", "rewards", "storage", "training"),
    "commands": (
        "algorithms",
        "config",
        "data",
        "display",
        "distributed",
        "estimate",
        "functional",
        "grading",
        "models",
        "preflight",
        "report",
        "rewards",
        "rollout",
        "storage",
        "trackers",
        "training",
    ),
    "preflight": ("config", "data", "display", "functional", "models", "rollout", "storage", "training"),
    "training": (
        "algorithms",
        "config",
        "data",
        "display",
        "distributed",
        "estimate",
        "functional",
        "models",
        "rewards",
        "rollout",
        "storage",
        "trackers",
    ),
    "estimate": ("config", "data", "functional", "models", "rollout", "tasks"),
    "config": ("algorithms", "data", "rewards", "rollout", "tasks"),
    "rollout": ("models", "rewards", "storage"),
    "distributed": ("display", "models", "storage"),
    "models": ("functional", "storage"),
    "report": ("display", "storage"),
    "trackers": ("display", "storage"),
    "data": ("functional", "tasks"),
    "algorithms": ("functional",),
    "display": (),
    "storage": (),
    "rewards": (),
    "tasks": ("grading",),
    "functional": (),
    "grading": (),
}

IDEAS = {
    "cli": "the command line",
    "api": "the same from Python",
    "commands": "one file per subcommand",
    "preflight": "is this run set up right?",
    "training": "from a batch to stepped weights",
    "estimate": "memory and time before step 1",
    "config": "the recipe, read and resolved",
    "rollout": "engines that sample completions",
    "distributed": "several processes as one",
    "models": "policy, critic, packing",
    "report": "a run's folder as a page",
    "trackers": "a run in other people's pages",
    "data": "prompts and batches",
    "algorithms": "credit and objective of each",
    "display": "numbers and text for people",
    "storage": "bytes that survive a kill",
    "rewards": "run anybody's reward function",
    "tasks": "problems to learn from",
    "functional": "the equations",
    "grading": "are two answers the same?",
}


def reachable(folder: str) -> set[str]:
    """Return every folder that `folder` imports, directly or through others."""
    below = set(MAY_IMPORT[folder])
    return below.union(*(reachable(name) for name in below))


def arrows() -> list[tuple[str, str]]:
    """Return (folder, imported folder) for each import that does not follow from the others."""
    return [
        (folder, name)
        for folder, names in MAY_IMPORT.items()
        for name in names
        if not any(name in reachable(other) for other in names if other != name)
    ]


def drawing() -> str:
    """Return the graph as Mermaid text. Arrows that follow from others are left out."""
    lines = ["```mermaid", "flowchart TD"]
    lines += [f'  {name}["<b>{name}/</b><br>{idea}"]' for name, idea in IDEAS.items()]
    lines += ['  reward_fns["<b>reward_fns/</b><br>shipped plugins"] --> grading', "  rewards -.->|by name| reward_fns"]
    lines += [f"  {folder} --> {name}" for folder, name in arrows()]
    return "\n".join([*lines, "```"])


def filled(page: str) -> str:
    """Return the page with the drawing as the graph is now."""
    return re.sub(
        r"(<!-- layers -->\n).*?(<!-- end -->)", lambda m: f"{m[1]}{drawing()}\n{m[2]}", page, flags=re.DOTALL
    )


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
