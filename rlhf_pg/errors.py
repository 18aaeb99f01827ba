"""Errors that a person can act on. The command line prints them as a paragraph, without a traceback."""

from __future__ import annotations

from collections.abc import Sequence


class RecipeError(ValueError):
    """A recipe that must not run. `problems` has one line per problem, each opening with the full dotted key."""

    def __init__(self, source: str, problems: Sequence[str]):
        self.source = source
        self.problems = [" ".join(problem.split()) for problem in problems]
        super().__init__("\n".join([f"{source}: {_count(len(self.problems))}", *(f"  {p}" for p in self.problems)]))


class RunError(RuntimeError):
    """An error in a run whose recipe is valid: a failed check, a lost process, an engine that does not answer."""


def _count(problems: int) -> str:
    return "1 problem" if problems == 1 else f"{problems} problems"
