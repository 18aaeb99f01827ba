"""What `rlhf-pg variance` refuses. Imports no torch, so that a wrong argument fails at once."""

from __future__ import annotations

from pathlib import Path

from rlhf_pg.config import ResolvedRecipe

RUN_FILES = ("metrics.jsonl", "config.yaml", "checkpoints", "model", ".lock")


def checked(
    recipe: ResolvedRecipe, *, after: int = 10, groups: int = 256, out: Path | None = None
) -> tuple[int, int, Path]:
    """Return steps to train first, groups to measure on, and the folder to write to, which is created.

    Raises ValueError for a number out of range, a folder that holds a run, or one that cannot be created.
    """
    if groups < 2:
        raise ValueError(f"--groups {groups}: a variance needs at least 2 groups")
    if not 0 <= after <= recipe.run.steps:
        raise ValueError(f"--after {after}: the recipe's run has steps 0 to {recipe.run.steps} (run.steps)")
    folder = out or recipe.run.dir.with_name(f"variance_{recipe.run.dir.name}")
    files = [name for name in RUN_FILES if (folder / name).exists()]
    if files:
        raise ValueError(f"--out {folder} holds a run ({', '.join(files)}): choose another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {folder} cannot be made: {error.strerror}; choose another folder") from error
    return after, groups, folder
