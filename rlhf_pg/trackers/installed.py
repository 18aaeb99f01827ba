"""Which trackers there are, and which of their packages are installed. Nothing is imported to see it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec

from rlhf_pg.errors import RecipeError

PACKAGES = ("tensorboard", "wandb", "trackio", "mlflow")  # each imported in its with_*.py alone, lazily


def require(names: Sequence[str], source: str) -> None:
    """Raise RecipeError, opening with the recipe `source`, if the package of a tracker is not installed."""
    if problems := list(missing(names)):
        raise RecipeError(source, problems)


def missing(names: Sequence[str]) -> Iterator[str]:
    """Say, a line each, which of these trackers have no package, and how to install it."""
    for name in names:
        if find_spec(name) is None:
            what = "tensorboard" if name == "tensorboard" else f'"rlhf_pg[{name}]"'
            yield f"log.trackers: {name} is not installed: pip install {what}, or leave it out"
