"""Reward functions for tests, written as a user would write them."""

import pathlib


def share_of_sevens(completion):
    """The share of characters that are a 7, in steps that a random model reaches by chance."""
    return sum(c == "7" for c in completion) / max(1, len(completion))


def seven_in_prompt(prompt):
    """What only the prompt decides: a critic can know it before the first token."""
    return float("7" in prompt)


def always_one(completion):
    return 1.0


def sevens_unless_forbidden(completion):
    """Fails for as long as a file named "forbidden" lies beside this one."""
    if pathlib.Path(__file__).with_name("forbidden").exists():
        raise RuntimeError("forbidden")
    return share_of_sevens(completion)
