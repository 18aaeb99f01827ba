"""Reward functions for tests, written as a user would write them."""

import pathlib


def share_of_sevens(completion):
    """The share of characters that are a 7, in steps that a random model reaches by chance."""
    return sum(c == "7" for c in completion) / max(1, len(completion))


def sevens_unless_forbidden(completion):
    """Fails for as long as a file named "forbidden" lies beside this one."""
    if pathlib.Path(__file__).with_name("forbidden").exists():
        raise RuntimeError("forbidden")
    return share_of_sevens(completion)
