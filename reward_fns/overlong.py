"""DAPO's soft overlong punishment (Yu et al. 2025, arXiv:2503.14476, equation 13), in tokens.

    0                         |y| <= L_max - L_cache
    (L_max - L_cache - |y|) / L_cache      up to L_max
    -1                        beyond: cut off

L_max is the token limit of the rollout; L_cache is a fifth of it, as in the paper (4,096 of 20,480). The penalty starts
before the limit, so that a model learns to stop in time; for short answers whatever the limit, see `length`.
"""


def overlong(completion_tokens: int, max_new_tokens: int, finish: str) -> float:
    """Return a penalty between 0.0 and -1.0, to be added to the reward of a correct answer."""
    if finish == "length":
        return -1.0
    return max(-1.0, min(0.0, (4 * max_new_tokens - 5 * completion_tokens) / max_new_tokens))
