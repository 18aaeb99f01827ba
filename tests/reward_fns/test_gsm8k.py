"""GSM8K's verdicts: which number of a text is the answer, and when two numbers are the same."""

import time
from decimal import Decimal

import pytest

from rlhf_pg.reward_fns.gsm8k import gsm8k
from rlhf_pg.tasks.gsm8k import gold


def verdict(completion: str, answer: str, finish: str = "stop") -> tuple[float, str]:
    result = gsm8k(completion, answer, finish)
    return result["reward"], result["outcome"]


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("He pays 3*4=<<3*4=12>>12\n#### 12", "worked\n#### 12"),
        ("so <<3*4=12>>12\nA: 12", "3*4=<<3*4=12>>12\nA: 12"),
        ("A: 70,000", "A: 70000"),
        ("#### 70000", "#### 70,000"),
        ("A: 18.0", "A: 18"),
        ("#### $18.", "#### 18"),
        ("#### -3", "#### -3"),
        ("The answer is 18.", "#### 18"),
        ("So she makes $18 a day.", "18"),
        ("She has 5 - 3 = 2 left", "#### 2"),
        (r"thus \boxed{18}", "#### 18"),
        (r"thus $\boxed{\$1,800.50}$ in all", "1800.5"),
        ("**Answer:** 18 dollars", "#### 18"),
        ("A: 12\nA: 18", "A: 18"),
        ("<think>#### 7</think> the answer is 18", "#### 18"),
        ("0.5", "#### 1/2"),
        ("It is 25%", "#### 25"),
    ],
)
def test_right_answers_count(completion, answer):
    assert verdict(completion, answer) == (1.0, "scored")


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("A: 26", "A: 18"),
        ("#### 18\n#### 26", "#### 18"),
        ("#### 180", "#### 18"),
        ("#### 1.8", "#### 18"),
        ("#### -18", "#### 18"),
        ("18 and then #### 26", "#### 18"),
        ("#### 18, 5", "#### 185"),
    ],
)
def test_wrong_answers_do_not(completion, answer):
    assert verdict(completion, answer) == (0.0, "scored")


def test_a_solution_in_calculator_notation_without_marker_was_cut_off():
    assert verdict("so 3*4 = <<3*4=12>>12", "#### 12") == (0.0, "unparseable")
    assert verdict("3*4 = <<3*4=12>>12, the answer is 12 if", "#### 12") == (0.0, "unparseable")
    assert verdict("so 3*4 = 12", "3*4=<<3*4=12>>12\nA: 12") == (0.0, "unparseable")


def test_the_last_number_of_a_truncated_text_is_no_answer():
    assert verdict("so 3*4 = 12", "#### 12", "length") == (0.0, "truncated")
    assert verdict("#### 12 and so on and", "#### 12", "length") == (1.0, "scored")


def test_no_number_is_unparseable():
    assert verdict("I cannot tell", "#### 12") == (0.0, "unparseable")
    assert verdict("", "#### 12") == (0.0, "unparseable")


def test_a_gold_without_number_is_an_error():
    with pytest.raises(ValueError, match="no number"):
        gsm8k("12", "twelve")


SAME_NUMBER = {  # a gold, and ways to write it that people and models use
    "1000": [
        "1,000", r"1\,000", "1{,}000", r"1\;000", r"1\ 000", "1~000", r"1,\!000", "1 000", "1\u202f000", "1\u00a0000",
        "1\u2009000", "1'000", "1’000", "1_000", "1000.00", "1e3", "1E+3", "1.0e3", r"10^3", "10^{3}", r"1\times10^{3}",
        "1 × 10^3", "1*10^{3}", "1 x 10^3", r"1\cdot 10^3", "10³", "1000.", "$1,000", r"\$1,000", "US$1000", "€1000",
        "1000 USD", "USD 1000", "1000€", "１０００", "𝟏𝟎𝟎𝟎", "١٠٠٠", "01000", "1k", "$1K", "1 thousand", "1,000 apples",
        r"1000\text{ apples}", r"\text{1000 apples}", r"\mathbf{1000}", r"\textbf{1,000}", "{1000}", r"\{1000\}",
        "2000/2",
        "2000 / 2", r"\frac{2000}{2}", r"1000\,\text{m}^2", "1000 m^2", "1000 cm²", "1000%", r"1000\%", r"1000^\circ",
        "1\u200b000", "+1000", "1000/1", "999 + 1 = 1000", "x = 1000",
    ],
    "1234.5": ["$1,234.50", "1234.5", "1{,}234.5", r"1\,234.5", "1 234.5", "12345e-1", "1.2345e3", r"\frac{2469}{2}"],
    "100000": ["1,00,000", "100,000", "1e5", "0.1 million", "100 thousand", "1.0E5", "10^{5}"],
    "0.5": [".5", "0.50", "1/2", r"\frac{1}{2}", r"\frac12", r"\dfrac{1}{2}", "½", "50%", r"50\%", "50 percent", "5e-1",
            "5×10⁻¹", r"5\times 10^{-1}", "5 * 10^(-1)", "2^{-1}", "1⁄2"],
    "-3": ["-3", "−3", "–3", "- 3", "-3.0", "-$3", "$-3", "$-3$", "-{3}", "{-3}", "(-3)", "-6/2", r"-\frac{6}{2}",
           r"\frac{-6}{2}", "negative 3", "minus 3", "－３"],
    "2.5": ["2 1/2", r"2\frac{1}{2}", r"2 \frac12", "2½", "5/2", "2.5 hours", "$2.50"],
    "5e-05": ["0.00005", "5e-5", "5E-05", r"5\times10^{-5}", "5 × 10^-5", ".00005", "1/20000", "0.000050"],
    "2.5e16": ["25000000000000000", "25,000,000,000,000,000", "2.5e16", r"2.5\times10^{16}", "2.5e+16"],
    "1e-7": ["0.0000001", "1e-07", "10^{-7}"],
    "3000000": ["3 million", "3M", "$3M", r"3\text{ million}", "$3 million", "3,000,000"],
}  # fmt: skip


@pytest.mark.parametrize(("gold", "spelling"), [(g, s) for g, ss in SAME_NUMBER.items() for s in ss])
def test_a_number_counts_however_it_is_written(gold, spelling):
    texts = [rf"so \boxed{{{spelling}}}.", f"The answer is {spelling}.", f"#### {spelling}", f"In all: {spelling}"]
    texts += [f"<answer>{spelling}</answer>", f"**Answer:** ${spelling}$"]
    assert [verdict(t, gold)[0] for t in texts] == [1.0] * len(texts)
    assert verdict(rf"\boxed{{{spelling}}}", "17") == (0.0, "scored")


OTHER_NUMBER = {  # a gold, and texts that hold its digits but do not state it
    "5": ["5e-05", "5e3", "5 million", "5k", "5.5.5", "5x", "5 + 2", "5 - 2", "5*2", r"5\times 2", r"5\sqrt{2}", "5^2",
          "5:30", "5 or 6", "5 1/2", r"5\pi", "5/6", "5,6", "5 and a half", "5-6", r"5\frac12", "5_{7}", "5(2)", "-5",
          r"\frac{5}{x}", "negative 5", "5\u202f000", "5 000", r"5\,000", "1/0", "5 hours and 30 minutes", "5 ± 1",
          "5 < x", "5³"],
    "16": ["2.5e16", r"10^{16}", "1e16", "16e5", "0.16", ".16", "116", "160"],
    "7": ["1e-7", "10^{-7}", "x^7", "m^{-7}", "3.7", r"\frac{1}{7}", "1/7"],
    "314": ["3,14", "3.14", r"3\,14"],
    "3.14": ["3,14"],
    "1000000": ["1.000.000", "10,00,00", "1.000,000"],
    "1000": ["1.000", "1,0,0,0", "1,00,0", "0,1000", "1, 000", "10,00"],
    "23": ["2/3", "2 3", "2\n3"],
    "0.5": ["0.5%", "5", "0,5"],
    "182": ["18²", "18^2"],
    "18": ["not 18", r"\sqrt{18}", "18:00", "x^{18}", "log_{18}", "a_18", "18/7/2020", "18,5",
           "18 dollars and 50 cents"],
    "1.8": ["1.8M", "1.8k"],
}  # fmt: skip


@pytest.mark.parametrize(("gold", "spelling"), [(g, s) for g, ss in OTHER_NUMBER.items() for s in ss])
def test_digits_of_another_number_do_not_count(gold, spelling):
    texts = [rf"so \boxed{{{spelling}}}.", f"The answer is {spelling}.", f"<answer>{spelling}</answer>"]
    assert [verdict(t, gold)[0] for t in texts] == [0.0] * len(texts)


@pytest.mark.parametrize(
    ("answer", "right", "wrong"),
    [
        (5e-05, "0.00005", "5"),
        (2.5e16, "25000000000000000", "16"),
        (0.1, "0.1", "0.10000000000000001"),
        (1e22, "10,000,000,000,000,000,000,000", "22"),
        (1234567.0, "1,234,567", "1234567.5"),
        (-0.0, "0", "1"),
        (18, "18", "19"),
        (Decimal("1E+3"), "1000", "3"),
        ("1e+22", "10000000000000000000000", "22"),
        ("5e-05", "1/20000", "5"),
        (r"$\frac{1}{3}$", "1/3", "0.333333333"),
        ("1\u202f234", "1234", "1"),
    ],
)
def test_a_gold_is_read_from_its_value(answer, right, wrong):
    assert gsm8k(f"The answer is {right}", answer)["reward"] == 1.0
    assert gsm8k(f"The answer is {wrong}", answer)["reward"] == 0.0


@pytest.mark.parametrize(
    "answer", ["3,14", "#### 1,5", "18 or 20", "12:30", "x", "1/0", float("nan"), True, "1e999999999"]
)
def test_a_gold_that_is_not_one_number_is_an_error(answer):
    with pytest.raises(ValueError, match="number"):
        gsm8k("12", answer)


@pytest.mark.parametrize(
    "text",
    ["1" * 100_000, "1," * 50_000, "1 " * 50_000, "\n" * 100_000, " " * 100_000, "answer is " * 10_000, "####" * 25_000,
     r"\boxed{" * 14_000, r"\frac{" * 16_000, "A:" * 50_000, "-" * 100_000, "$" * 100_000, "1e" * 50_000, "1/" * 50_000,
     "(" * 100_000, "1" + " " * 99_999, "#### " + "(" * 99_999, "#### " + "1=" * 49_000, "<think>" * 14_000,
     "1.2" * 33_000, "answer" + " " * 99_000, "#### 1\n" * 14_000, r"\,1" * 33_000, "10^{" * 25_000, "a or " * 20_000,
     "½" * 50_000, r"1\times10^{999999999}", "1e999999999", "-1e-999999999", "9" * 5_000, "2^{99999}",
     "1" + "0" * 2_000 + "^{900}"],
)  # fmt: skip
def test_a_text_made_to_take_long_does_not(text):
    start = time.monotonic()
    for completion in (text, f"{text} and", f"The answer is {text}", rf"\boxed{{{text}}}", f"#### {text}"):
        assert gsm8k(completion, "42")["reward"] == 0.0
    assert time.monotonic() - start < 2


def test_a_box_of_several_numbers_is_no_answer():
    for box in ["18 or 20", "18, 20", r"18\text{ and }20", "18 + 2", "20 - 2", r"\sqrt{18}", "|18|", r"\pm 18", "18!"]:
        assert verdict(rf"In all 18. \boxed{{{box}}}", "18") == (0.0, "unparseable"), box


def test_an_answer_block_is_where_the_answer_is():
    assert verdict("<answer>18</answer> of 20", "18") == (1.0, "scored")
    assert verdict("18 <answer>no idea</answer>", "18") == (0.0, "unparseable")
    assert verdict("<answer>5 + 13 = 18 dollars</answer>", "18", "length") == (1.0, "scored")


def test_the_golds_of_a_task_are_the_same_numbers():
    golds = {"#### 70,000": "70000", "5e-05": "0.00005", "2.5e16": "25000000000000000", "$1,234.50": "1234.5",
             r"$\frac{1}{3}$": "1/3", "-1/8": "-0.125", "18.50": "18.50", "-.5": "-0.5"}  # fmt: skip
    assert {text: gold(text) for text in golds} == golds
    for text in ("3,14", "18 or 20", "12:30", "none", "5 + 2"):
        with pytest.raises(ValueError, match="number"):
            gold(text)
