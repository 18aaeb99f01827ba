"""One checkpoint of several processes: the first writes what all have in common, each what only it has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_pg.distributed.ranks import Ranks
from rlhf_pg.errors import RunError
from rlhf_pg.storage import checkpoint
from rlhf_pg.storage.atomic_io import disk_error
from rlhf_pg.storage.checkpoint import Tensors

State = tuple[Tensors, Mapping[str, Any]]  # tensors by group and name, and JSON


def save(ranks: Ranks, directory: Path, step: int, common: State, of_rank: State, keep: int) -> Path:
    """Write a checkpoint as `storage.checkpoint.save` does; all ranks call this, each with the state that only it has.

    Raises what that raises, and RunError if it happened to another rank.
    """
    (tensors, state), (rank_tensors, rank_state) = common, of_rank
    if ranks.size == 1:
        return checkpoint.save(directory, step, {**tensors, **rank_tensors}, {**state, **rank_state}, keep)
    what = f"checkpoint {step}"
    state = {**state, checkpoint.OF_RANK: ranks.gather(rank_state, what)}
    writer = checkpoint.Writer(directory, step, state, keep)
    rank_groups = {checkpoint.rank_group(group, ranks.rank): named for group, named in rank_tensors.items()}
    try:
        with ranks.independently(f"{what}: its folder"):
            if ranks.first:
                writer.begin()
        with ranks.independently(f"{what}: its files"):
            part = writer.write({**(tensors if ranks.first else {}), **rank_groups})
        parts = ranks.gather(part, what)
        with ranks.independently(f"{what}: its name"):
            if ranks.first:
                writer.publish(parts)
    except (OSError, RunError) as error:
        failure = disk_error(writer.path, error) if isinstance(error, OSError) else error
        if ranks.first:
            writer.abandon()
        raise failure from error
    with ranks.independently(f"{what}: older ones"):
        if ranks.first:
            writer.prune()
    return writer.path
