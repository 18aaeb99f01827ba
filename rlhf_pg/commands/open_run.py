"""A run's folder and where it goes on: one process opens it, all agree."""

from __future__ import annotations

from pathlib import Path

from rlhf_pg.config import ResolvedRecipe
from rlhf_pg.distributed.ranks import Ranks
from rlhf_pg.storage import checkpoint
from rlhf_pg.storage.run_dir import RunDir
from rlhf_pg.training.resume import Progress, restore
from rlhf_pg.training.setup import Session


def open_folder(recipe: ResolvedRecipe, ranks: Ranks) -> RunDir:
    """Open the run's folder on the first rank, and follow it on the others."""
    folder = None
    with ranks.independently("opening run.dir"):
        if ranks.first:
            folder = RunDir.open(recipe.run.dir, recipe.run.resume)
    resume_from = ranks.gather(str((folder and folder.resume_from) or ""), "the checkpoint to resume from")[0]
    with ranks.independently("run.dir on every machine"):
        folder = folder or RunDir.follow(recipe.run.dir, Path(resume_from) if resume_from else None)
    return folder


def resumed(session: Session, folder: RunDir) -> Progress:
    """Restore the newest sound checkpoint, if there is one. Returns where the run is."""
    if folder.resume_from is None:
        return Progress()
    progress = restore(session, *checkpoint.load(folder.resume_from, session.learner.backend.ranks.rank))
    folder.truncate_after(progress.step, rollouts=progress.step + bool(progress.pending))
    return progress
