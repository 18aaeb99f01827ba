"""A gold answer in a column of numbers reaches the reward as its exact decimals, not as Python prints it."""

import math
from decimal import Decimal

import pyarrow
import pyarrow.parquet
import pytest

from rlhf_pg.data.prompts import to_prompts
from rlhf_pg.data.source import load_rows
from rlhf_pg.models.tokenizer import character_tokenizer


def golds(*values, task=None):
    rows = [{"question": "?", "answer": v} for v in values]
    found = to_prompts(
        rows, character_tokenizer(), split_name="train", prompt_column="question", answer_column="answer",
        template="plain", max_prompt_tokens=512, context_length=1024, max_new_tokens=8, task=task,
    )  # fmt: skip
    return [p.columns["answer"] for p in found.prompts]


@pytest.mark.parametrize("task", [None, "gsm8k"])
def test_floats_have_no_exponent(task):
    values = 5e-05, 2.5e16, 0.1, 1e22, 1234567.0, -3, Decimal("1E+3"), Decimal("0.10")
    exact = ["0.00005", "25000000000000000", "0.1", "1" + "0" * 22, "1234567.0", "-3", "1000", "0.10"]
    assert golds(*values, task=task) == exact


def test_a_column_of_32_bit_floats_holds_the_decimals_that_were_written(tmp_path):
    values = pyarrow.array([0.1, 5e-05, 2.5, None, 16777216.0], pyarrow.float32())
    pyarrow.parquet.write_table(pyarrow.table({"answer": values}), tmp_path / "d.parquet")
    assert [row["answer"] for row in load_rows(path=tmp_path / "d.parquet")] == [0.1, 5e-05, 2.5, None, 16777216.0]


@pytest.mark.parametrize("value", [math.nan, math.inf, Decimal("NaN"), True])
def test_what_is_no_number_is_named_by_row_and_column(value):
    with pytest.raises(ValueError, match=r"row 1.*'answer'"):
        golds(1, value)
