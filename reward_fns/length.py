"""A soft limit on length: 0 up to the budget, then falling linearly to -1 over as much again.

DAPO's soft overlong punishment (Yu et al. 2025, arXiv:2503.14476, equation 13), in characters: a reward function sees
text. A completion that was cut off at the token limit has -1. The data may set its own `length_budget`, per row.
"""


def length(completion: str, finish: str = "stop", length_budget: int = 2000) -> float:
    """A penalty between 0.0 and -1.0; give it a weight below that of being right."""
    if finish == "length":
        return -1.0
    over = len(completion) - length_budget
    return -min(1.0, max(0, over) / max(1, length_budget))
