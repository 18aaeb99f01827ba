"""Reward functions for tests, written as a user would write them."""

import pathlib


def share_of_sevens(completion):
    """The share of characters that are a 7, in steps that a random model reaches by chance."""
    return sum(c == "7" for c in completion) / max(1, len(completion))


def share_of_digits(completion):
    """The share of characters that are digits: hardly ever the same for all samples of a prompt."""
    return sum(c.isdigit() for c in completion) / max(1, len(completion))


def digits_after_an_odd_digit(prompt, completion):
    """The same for prompts whose first digit is odd, and 0 for the others: nothing can be learned from those."""
    odd = int(next(c for c in prompt if c.isdigit())) % 2
    return share_of_digits(completion) if odd else 0.0


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


def never(completion):
    return 0.0


def fails_on_odd_sums(completion):
    """Fails on about half of the samples."""
    if sum(map(ord, completion)) % 2:
        raise ValueError("the sum of its characters is odd")
    return share_of_sevens(completion)


def letters_modulo_seven(completion):
    """Hardly ever the same for all samples of a prompt, whatever the tokens are."""
    return sum(map(ord, completion)) % 7 / 7
