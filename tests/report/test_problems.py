"""Held-out problems one by one: what was gained and lost."""

import json

import pytest

from rlhf_pg.report import write_report
from rlhf_pg.report.measures import eval_points
from rlhf_pg.report.notices import notices
from rlhf_pg.report.problems import Count, problems
from rlhf_pg.report.run_record import read
from tests.report.report_pages import Page, make, row


def line(step, name, correct, n=4, greedy=None):
    return {
        "step": step,
        "id": name,
        "prompt": f"p {name}",
        "answer": "1",
        "n": n,
        "correct": correct,
        "greedy": greedy,
    }


def run(tmp_path, lines, tail=""):
    path = make(tmp_path / "run", [row(1)])
    (path / "eval.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines) + tail)
    return path


def test_gained_and_lost_compare_the_first_evaluation_with_the_last(tmp_path):
    before = [line(0, "a", 1, greedy=False), line(0, "b", 4, greedy=True), line(0, "c", 0, greedy=False)]
    between = [line(5, "a", 0), line(5, "b", 0), line(5, "c", 4)]
    after = [line(9, "a", 3, greedy=True), line(9, "b", 2, greedy=False), line(9, "c", 0, greedy=False)]
    text = problems(read(run(tmp_path, before + between + after))).summary()
    assert text.startswith("From before training to step 9: 1 gained, 1 lost, 1 unchanged")
    assert "1 not solved by any sample at the end" in text and "Greedy: 1 newly right, 1 no longer." in text


def test_shares_are_compared_where_fewer_samples_could_be_judged(tmp_path):
    lines = [line(0, "a", 2, n=4), line(2, "a", 1, n=2), line(0, "b", 0, n=0), line(2, "b", 4)]
    assert "0 gained, 0 lost, 1 unchanged" in problems(read(run(tmp_path, lines))).summary()


def test_of_a_step_evaluated_twice_the_last_line_counts(tmp_path):
    held = problems(read(run(tmp_path, [line(0, "a", 1), line(0, "a", 3)])))
    assert held.steps == [0] and held.problems[0].counts == {0: Count(4, 3, None)}
    assert held.summary() == "1 problem, evaluated once so far."


@pytest.mark.parametrize(
    "damage", [{"n": "x"}, {"correct": 5}, {"correct": -1}, {"step": None}, {"n": 1e300}, {"n": float("nan")}]
)
def test_a_damaged_line_is_skipped_and_said(tmp_path, damage):
    record = read(run(tmp_path, [line(0, "a", 1), line(0, "b", 1) | damage], tail='{"step": 0, '))
    assert [p.id for p in problems(record).problems] == ["a"]
    assert "eval.jsonl: 2 lines could not be read; skipped." in [n.text for n in notices(record)]


def test_the_page_has_the_counts_of_every_evaluation(tmp_path):
    page = Page(write_report.write([run(tmp_path, [line(0, "a", 1), line(3, "a", 4, greedy=True), line(3, "b", 2)])]))
    assert page.data()["problems"]["steps"] == [0, 3]
    assert [r["counts"] for r in page.data()["problems"]["rows"]] == [
        [[4, 1, None], [4, 4, True]],
        [None, [4, 2, None]],
    ]
    assert "From before training to step 3: 1 gained, 0 lost" in page.text


def test_a_run_without_evaluations_has_no_such_heading(tmp_path):
    assert "<h2>Held-out problems</h2>" not in Page(write_report.write([make(tmp_path / "run", [row(1)])])).html


def test_before_its_end_a_run_has_its_first_figures_from_there(tmp_path):
    path = run(
        tmp_path, [line(0, "a", 1, greedy=True), line(0, "b", 4, greedy=True), line(5, "a", 4), line(0, "c", 0, n=0)]
    )
    assert read(path).evaluation("before") == {"pass@1": 0.625, "greedy": 1.0}  # (1/4 + 4/4) / 2
    assert eval_points(read(path)) == [(0.0, 62.5)]
    (path / "summary.json").write_text(json.dumps({"before": {"pass@1": 0.6}}))
    assert read(path).evaluation("before") == {"pass@1": 0.6}
