"""A penalty on length: 0 up to a budget of characters, then falling linearly to -1 at twice the budget.

The budget may differ from row to row (column `length_budget`). A completion that was cut off at the token limit has -1.
`overlong` is the penalty that depends on the token limit.
"""


def length(completion: str, finish: str = "stop", length_budget: int = 2000) -> float:
    """Return a penalty between 0.0 and -1.0, to be weighted less than a correct answer."""
    if finish == "length":
        return -1.0
    over = len(completion) - length_budget
    return -min(1.0, max(0, over) / max(1, length_budget))
