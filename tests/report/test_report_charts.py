import re

import pytest

from rlhf_pg.report import write_report
from rlhf_pg.report.axes import Point, number_text, ticks
from rlhf_pg.report.charts import Series, chart, smooth, stacked
from tests.report.report_pages import Page, make, row


def test_a_line_goes_from_its_first_to_its_last_value_and_breaks_at_gaps():
    drawn = chart("t", [Series("a", [(0, 0.0), (5, 1.0), (6, None), (8, 0.5), (10, 0.0)])], floor=0, ceiling=1)
    assert drawn is not None
    (mark,) = drawn.marks
    assert mark.path == "M0.0 1000.0L500.0 0.0M800.0 500.0L1000.0 1000.0"
    assert [label for _, label in drawn.y_ticks] == ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]
    assert [top for top, _ in drawn.y_ticks] == pytest.approx([100, 80, 60, 40, 20, 0])
    assert [label for _, label in drawn.x_ticks] == ["0", "2", "4", "6", "8", "10"]


def test_a_long_line_keeps_its_extremes():
    points: list[Point] = [(float(i), 1.0 if i == 4321 else -1.0 if i == 8765 else 0.0) for i in range(10_000)]
    drawn = chart("t", [Series("a", points)], floor=-1, ceiling=1)
    assert drawn is not None
    heights = [float(y) for y in re.findall(r" (-?[\d.]+)", drawn.marks[0].path)]
    assert min(heights) == 0.0 and max(heights) == 1000.0 and len(heights) <= 2000


def test_a_series_without_a_finite_value_is_no_chart():
    assert chart("t", [Series("a", [(1, None)])]) is None
    assert chart("t", []) is None
    assert stacked("t", [("a", [(1, 0.0), (2, 0.0)], 1)]) is None


def test_shares_stack_to_the_whole():
    drawn = stacked("t", [("a", [(0, 3.0), (1, 1.0)], 1), ("b", [(0, 1.0), (1, 1.0)], 2)])
    assert drawn is not None
    below, above = drawn.marks
    assert below.path == "M0.0 250.0L1000.0 500.0L1000.0 1000.0L0.0 1000.0Z"  # 75 % then 50 % of the height
    assert above.path == "M0.0 0.0L1000.0 0.0L1000.0 500.0L0.0 250.0Z"


def test_a_spike_does_not_flatten_the_curve_and_is_told():
    points: list[Point] = [(float(i), 500.0 if i == 50 else float(i % 3)) for i in range(100)]
    drawn = chart("t", [Series("a", points)], floor=0)
    assert drawn is not None and "the axis ends below the highest value, 500" in drawn.note
    assert all(float(label) < 5 for _, label in drawn.y_ticks)


def test_smoothing_keeps_a_constant_and_follows_a_step():
    assert smooth([(0, 2.0), (1, None), (2, 2.0)]) == [(0, 2.0), (1, None), (2, 2.0)]
    (_, first), (_, second) = smooth([(0, 0.0), (1, 1.0)], share=2.0)  # window 4: weights 0.4 * 0.6 and 0.4
    assert first == 0.0 and second == pytest.approx(0.4 / 0.64)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (3, 97, [20, 40, 60, 80]), (-1, 1, [-1, -0.5, 0, 0.5, 1])],
)
def test_ticks_are_round_numbers_inside_the_axis(low, high, expected):
    assert ticks(low, high, 5)[0] == pytest.approx(expected)


def test_numbers_have_the_digits_their_axis_needs():
    assert number_text(0.6000000001, 0.2) == "0.6" and number_text(0.05, 0.05) == "0.05"
    assert (
        number_text(1e-6, 5e-7) == "1.0e-06"
        and number_text(25_000, 5_000) == "25k"
        and number_text(40, 20, "%") == "40%"
    )


def test_a_series_that_is_always_zero_is_named_and_not_drawn(tmp_path):
    rows = [row(i, reward=0.0, entropy=1.5, **{"clip/fraction": 0.0, "kl/ref": 0.0}) for i in range(1, 9)]
    page = Page(write_report.write([make(tmp_path / "run", rows)]))
    assert "Entropy" in page.titles() and not {"Reward", "KL to the reference", "Clipped"} & page.titles()
    assert "Always 0: Reward, KL to the reference, Clipped." in page.text
    assert "Always 0" not in page.text.split("Not recorded in this run")[1]


@pytest.mark.parametrize("value", [1e-9, -2.0, 3.0])
def test_a_constant_other_than_zero_is_drawn_inside_its_axis(value):
    drawn = chart("t", [Series("a", [(1, value), (2, value)])])
    assert drawn is not None and not drawn.always_zero and drawn.y.low < value < drawn.y.high
    assert any(0 <= top <= 100 for top, _ in drawn.y_ticks)


def test_the_value_beside_a_title_says_that_it_is_smoothed_and_the_page_how(tmp_path):
    page = Page(write_report.write([make(tmp_path / "run", [row(i, reward=i % 2, entropy=1.0) for i in range(1, 9)])]))
    (latest,) = re.findall(r'<h3>Reward</h3>.*?<span class="latest">([^<]*)<small>([^<]*)</small>', page.html)
    assert latest[1] == "smoothed" and 0 < float(latest[0]) < 1  # the last value itself is 0
    assert "smoothed, an exponential mean over about a twentieth of the steps" in page.text


def test_cells_carry_their_column_for_a_phone_which_shows_no_head(tmp_path):
    runs = [make(tmp_path / name, [row(1)]) for name in "ab"]
    page = Page(write_report.write(runs, tmp_path / "both.html"))
    cells = [attributes["data-label"] for tag, attributes in page.tags if tag == "td" and "data-label" in attributes]
    assert cells[:3] == ["run", "algorithm", "steps"]
