"""A budget of characters: 0 up to it, then falling linearly to -1 over as much again.

The budget is the reader's, may differ from row to row (column `length_budget`), and holds for texts in a file too. A
completion that was cut off at the token limit has -1. For a penalty that goes by that limit, see `overlong`.
"""


def length(completion: str, finish: str = "stop", length_budget: int = 2000) -> float:
    """A penalty between 0.0 and -1.0; give it a weight below that of being right."""
    if finish == "length":
        return -1.0
    over = len(completion) - length_budget
    return -min(1.0, max(0, over) / max(1, length_budget))
