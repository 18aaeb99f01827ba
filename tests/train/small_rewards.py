"""Reward functions for tests, written as a user would write them."""


def share_of_sevens(completion):
    """The share of characters that are a 7, in steps that a random model reaches by chance."""
    return sum(c == "7" for c in completion) / max(1, len(completion))
