"""Data rows that know the file and the line they come from, and what a person should know about reading them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_pg.data import conversation
from rlhf_pg.tasks.base import Row

KINDS = ((bool, "true or false"), (str, "text"), (int | float, "a number"), (Mapping, "a struct"), (list, "a list"))


class Rows(list[Row]):
    """A list of data rows that remembers where they came from: one file, data set or task, or several files."""

    def __init__(
        self, rows: list[Row], source: str, lines: list[int] | None = None, empty_cells: Mapping[str, int] | None = None
    ):
        super().__init__(rows)
        self.source = source  # file, data set or task, for error messages
        self.lines = lines  # line number of each row, of files that have lines
        self.empty_cells = Counter(empty_cells or {})  # by column, of .csv and .tsv
        self.parts: list[Rows] = []  # of several files

    @classmethod
    def joined(cls, parts: Sequence[Rows]) -> Rows:
        """Return the rows of several files after each other, or of the only one."""
        if len(parts) == 1:
            return parts[0]
        rows = cls([row for part in parts for row in part], f"{len(parts)} files, {_ends(parts)}")
        rows.parts = list(parts)
        rows.empty_cells = sum((part.empty_cells for part in parts), Counter())
        return rows

    def first(self, count: int | None) -> Rows:
        """Return the first rows, all for None."""
        if count is None:
            return self
        rows = Rows(self[:count], self.source, self.lines and self.lines[:count], self.empty_cells)
        rows.parts = self.parts
        return rows

    def where(self, index: int) -> str:
        """Return "train.jsonl:17", or "openai/gsm8k, row 16" where there are no lines."""
        for part in self.parts:
            if index < len(part):
                return part.where(index)
            index -= len(part)
        return f"{self.source}:{self.lines[index]}" if self.lines else f"{self.source}, row {index}"

    def remarks(self) -> list[str]:
        """Return what a person should know: how many files, cells without a value, files that differ."""
        files = [f"from {self.source}"] if self.parts else []
        without = [f"no rows in {part.source}" for part in self.parts if not part]
        cells = [
            f"{count} empty cell{'s' * (count > 1)} of column {name!r} read as missing values"
            for name, count in self.empty_cells.items()
        ]
        return [*files, *without, *cells, *self._differences()]

    def _differences(self) -> list[str]:
        """Say which columns have values of another kind in another file, as the first value of each file tells."""
        first: dict[str, tuple[str, Rows]] = {}
        differences: dict[str, str] = {}
        for part in self.parts:
            for name, kind in _kinds(part).items():
                usual, other = first.setdefault(name, (kind, part))
                if kind != usual and name not in differences:
                    differences[name] = f"column {name!r} is {usual} in {other.source} and {kind} in {part.source}"
        return list(differences.values())


def _kinds(rows: Rows) -> dict[str, str]:
    """Return the kind of the first value of each column."""
    kinds: dict[str, str] = {}
    columns = {name for row in rows[:1] for name in row}
    for row in rows:
        for name in [*columns - kinds.keys()]:
            if (value := row.get(name)) is not None:
                kinds[name] = _kind(conversation.decoded(conversation.plain(value)))
        if columns <= kinds.keys():
            break
    return kinds


def _kind(value: Any) -> str:
    if conversation.is_conversation(value):
        return "messages"
    return next((name for types, name in KINDS if isinstance(value, types)), f"a {type(value).__name__}")


def _ends(parts: Sequence[Rows]) -> str:
    return f"{parts[0].source} to {parts[-1].source}"
