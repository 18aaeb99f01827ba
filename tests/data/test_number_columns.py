"""A gold answer in a column of numbers reaches the reward as its exact decimals, not as Python prints it."""

import math
from decimal import Decimal

import pytest

from rlhf_pg.data.prompts import to_prompts
from rlhf_pg.models.tokenizer import character_tokenizer


def golds(*values, task=None):
    columns = {"prompt_column": "question", "answer_column": "answer"}
    rows = [{"question": "?", "answer": v} for v in values]
    limits = {"max_prompt_tokens": 512, "context_length": 1024, "max_new_tokens": 8}
    found = to_prompts(
        rows, character_tokenizer(), split_name="train", task=task, template="plain", **limits, **columns
    )
    return [p.columns["answer"] for p in found.prompts]


@pytest.mark.parametrize("task", [None, "gsm8k"])
def test_floats_have_no_exponent(task):
    values = 5e-05, 2.5e16, 0.1, 1e22, 1234567.0, -3, Decimal("1E+3"), Decimal("0.10")
    exact = ["0.00005", "25000000000000000", "0.1", "1" + "0" * 22, "1234567.0", "-3", "1000", "0.10"]
    assert golds(*values, task=task) == exact


@pytest.mark.parametrize("value", [math.nan, math.inf, Decimal("NaN"), True])
def test_what_is_no_number_is_named_by_row_and_column(value):
    with pytest.raises(ValueError, match=r"row 1.*'answer'"):
        golds(1, value)
