import re
from pathlib import Path
from typing import Any

import pytest

from rlhf_pg.display.notices import Notice
from rlhf_pg.report import write_report
from rlhf_pg.report.axes import spread
from rlhf_pg.report.bars import held_out_compared
from rlhf_pg.report.charts import Chart
from rlhf_pg.report.curves import overlays
from rlhf_pg.report.notices import merged
from rlhf_pg.report.run_record import RunRecord, read
from rlhf_pg.report.seed_groups import seed_groups
from tests.report.report_pages import Page, make, recipe, row, table


def runs(*dirs: Path) -> list[RunRecord]:
    return [read(path) for path in dirs]


def drawn(*dirs: Path) -> dict[str, Chart]:
    charts, _ = overlays(seed_groups(runs(*dirs)))
    return {chart.title: chart for chart in charts}


def test_two_runs_are_compared_at_equal_samples_and_at_equal_seconds(tmp_path):
    few = make(tmp_path / "few", [row(i, 0.25, **{"samples/total": 10 * i}) for i in range(1, 31)], config="a: {b: 1}")
    rows = [row(i, 0.5 if i <= 10 else 1.0, **{"samples/total": 30 * i}) for i in range(1, 41)]
    rows[4]["eval/pass@1"] = 0.4
    rows[20]["eval/pass@1"] = 0.9
    many = make(tmp_path / "many", rows, config="a: {b: 2}")
    page = Page(write_report.write([few, many]))
    assert [list(cells.values()) for cells in table(page, "At equal samples: 300").values()] == [
        ["30", "1:00", "0.250", "–"],
        ["10", "0:20", "0.500", "40.0% (step 5)"],
    ]
    seconds = table(page, "At equal seconds in steps: 1:00")  # 2 s a step, so 30 steps of each
    assert [cells["samples"] for cells in seconds.values()] == ["300", "900"]
    assert [cells["latest held-out pass@1"] for cells in seconds.values()] == ["–", "90.0% (step 21)"]
    assert table(page, "Recipes differ in") == {"a.b": {"few": "1", "many": "2"}}
    assert {"Reward by samples", "Reward by seconds", "Held-out pass@1 by samples"} <= page.titles()
    assert (few / "report.html").exists() and not (many / "report.html").exists()


def test_runs_stand_in_the_order_they_were_given_with_one_colour_each_everywhere(tmp_path):
    names = ["zeta", "a_name_of_twenty_five_signs", "beta"]
    more: dict[str, Any] = {"entropy": 1.0, "memory/peak_gib": 5, "eval/pass@1": 0.5}
    dirs = [make(tmp_path / name, [row(1, i, **more), row(2, i, **more)]) for i, name in enumerate(names)]
    page = Page(write_report.write(dirs))
    assert list(table(page, "Final figures")) == names == list(table(page, "Cost"))
    ends = re.findall(r'<span class="end line c(\d)" [^>]*title="([^"]*)"', page.html)
    swatches = re.findall(r'swatch c(\d)"></i>([^<]*)<', page.html)
    bars = re.findall(r'<span class="dim">([^<(]*?)(?: \(step 2\))?</span>\n<div class="track c(\d)">', page.html)
    assert len(ends) >= 9 and len(bars) == 9  # three bars each of pass@1, memory and seconds
    expected = {("1", "zeta"), ("2", "a_name_of_twenty_five_signs"), ("3", "beta")}
    assert set(ends) == set(swatches) == {(color, name) for name, color in bars} == expected


def test_the_ninth_run_has_the_first_ones_colour_with_a_broken_line(tmp_path):
    dirs = [make(tmp_path / str(i), [row(1), row(2)]) for i in range(9)]
    ends = {label: (kind, color) for _, kind, label, color in drawn(*dirs)["Reward by samples"].ends}
    assert ends["0"] == ("line", 1) and ends["7"] == ("line", 8) and ends["8"] == ("other", 1)


def test_the_cost_table_tells_critic_memory_and_seconds(tmp_path):
    def rows(memory, *seconds):
        each = zip(memory, seconds, strict=True)
        return [
            row(i, **{"memory/peak_gib": gib, "time/step_s": s, "time/update_s": 0.5, "update/steps": 4})
            for i, (gib, s) in enumerate(each, 1)
        ]

    critics: dict[str, Any] = {"own": "copy", "joint": "policy", "small": "models/tiny"}
    dirs = [
        make(tmp_path / name, rows([0.9, 1.5, 1.2], 1, 7, 2), config=recipe("ppo", critic={"backbone": backbone}))
        for name, backbone in critics.items()
    ]
    summary = {"wall_s": 65}
    dirs.append(make(tmp_path / "default", rows([5], 1), config=recipe("ppo", critic={"epochs": 2})))
    dirs.append(make(tmp_path / "without", rows([10, 10], 1, 1), config=recipe("grpo"), summary=summary))
    cost = table(Page(write_report.write(dirs)), "Cost")
    assert [cells["critic"] for cells in cost.values()] == ["own copy", "shared", "models/tiny", "own copy", "none"]
    assert cost["own"] == {
        "algorithm": "ppo",
        "critic": "own copy",
        "peak memory": "1.50 GiB",
        "seconds per step": "2.00 s",
        "update share": "15%",  # 1.5 s of 10 s
        "optimizer steps": "12",
        "wall time": "unfinished",
    }
    assert cost["without"]["update share"] == "50%" and cost["without"]["wall time"] == "1:05"


def test_memory_and_seconds_are_bars_relative_to_the_longest(tmp_path):
    a = make(tmp_path / "a", [row(1, **{"memory/peak_gib": 0.3})])
    b = make(tmp_path / "b", [row(1, **{"memory/peak_gib": 1.2, "time/step_s": 8.0})])
    html = Page(write_report.write([a, b])).html
    memory, seconds = re.findall(r"<b>(?:peak memory|seconds per step)</b>(.*?)\n</div>\n", html, re.S)
    assert re.findall(r"width:([\d.]+)%", memory) == ["25.00", "100.00"] and "1.20 GiB" in memory
    assert re.findall(r"width:([\d.]+)%", seconds) == ["25.00", "100.00"] and "2.00 s" in seconds


def test_kl_moved_adds_up_what_each_step_moved_and_names_the_runs_that_cannot_know(tmp_path):
    def logged(values, **more):
        return [row(i, **({"kl/old": v} if v is not None else {}), **more) for i, v in enumerate(values, 1)]

    region = [row(i, **{"trust/kl": v, "kl/old": 9.0}) for i, v in enumerate((0.01, 0.0, 0.02), 1)]
    dirs = [
        make(tmp_path / "trpo", region),
        make(tmp_path / "ppo", logged([None, 0.25, 0.5])),  # the first step only taught the critic
        make(tmp_path / "on_policy", logged([0.0, 0.0, 0.0])),
        make(tmp_path / "old_log", logged([None, None, None])),
    ]
    page = Page(write_report.write(dirs))
    moved = {name: cells["KL moved"] for name, cells in table(page, "Final figures").items()}
    assert moved == {"trpo": "0.03", "ppo": "0.75", "on_policy": "–", "old_log": "–"}
    chart = drawn(*dirs)["KL moved"]
    assert [label for _, _, label, _ in sorted(chart.ends)] == ["ppo", "trpo"]
    assert "Not drawn: on_policy, old_log (not measured;" in chart.foot and chart.foot in page.text
    assert "sum" in chart.note and "not the distance" in chart.foot


def test_a_run_without_a_reference_is_named_and_not_drawn_at_zero(tmp_path):
    a = make(tmp_path / "a", [row(i, **{"kl/ref": 0.1 * i}) for i in range(1, 11)])
    b = make(tmp_path / "b", [row(i) for i in range(1, 11)], config=recipe("ppo", kl={"coefficient": 0.0}))
    page = Page(write_report.write([a, b]))
    reference = drawn(a, b)["KL to the reference"]
    assert [label for _, _, label, _ in reference.ends] == ["a"] == [label for _, label, _ in reference.legend]
    assert "Not drawn: b (no KL term in the recipe" in reference.foot
    figures = table(page, "Final figures")
    assert figures["a"]["KL to ref."] == "1" and figures["b"]["KL to ref."] == "–"


def test_a_chart_that_no_recipe_could_fill_is_neither_drawn_nor_missed(tmp_path):
    config = recipe("grpo", kl={"coefficient": 0.0})
    page = Page(write_report.write([make(tmp_path / n, [row(1), row(2)], config=config) for n in "ab"]))
    absent = re.search(r"Not recorded in these runs: ([^<]*)", page.html)
    assert (
        absent
        and absent[1] == "Held-out pass@1 by samples, Held-out pass@1 by seconds, KL moved, Entropy, Completion length."
    )
    assert "KL to ref." not in table(page, "Final figures")["a"]


def test_final_pass_at_k_comes_with_its_interval_what_it_was_before_and_when(tmp_path):
    before = {"pass@1": 0.2}
    after = {"pass@1": 0.9, "pass@1_low": 0.85, "pass@1_high": 0.94}
    done = make(tmp_path / "done", [row(1)], summary={"before": before, "after": after})
    going = make(tmp_path / "going", [row(1), row(2, **{"eval/pass@1": 0.5, "eval/pass@8": 8.0}), row(3)])
    never = make(tmp_path / "never", [row(1)])
    bars = held_out_compared(seed_groups(runs(done, going, never)))
    assert bars is not None
    ((label, (first, second)),) = bars.groups  # and no group for the odd one's figure
    assert label == "held-out pass@1" and "Not evaluated: never." in bars.note and "95% interval" in bars.note
    assert (first.label, first.text, first.value, first.low, first.high, first.before) == (
        "done", "90.0%", 90.0, 85.0, 94.0, 20.0,
    )  # fmt: skip
    assert (second.label, second.text, second.low, second.before) == ("going (step 2)", "50.0%", None, None)
    page = Page(write_report.write([done, going, never]))
    assert '<s style="left:20.00%"' in page.html and '<u style="left:85.00%;width:9.00%"' in page.html
    figures = table(page, "Final figures")
    assert [cells["pass@1"] for cells in figures.values()] == ["20.0 → 90.0%", "50.0% (step 2)", "–"]


def test_what_several_runs_have_to_tell_is_said_once_with_its_range():
    def cut(share):
        return Notice("warning", f"{share} of late completions were cut off: raise rollout.max_new_tokens.")

    lost = Notice("problem", "reward/f1 was not a finite number in 3 steps, first in step 7.")
    lost_2 = Notice("problem", "reward/f2 was not a finite number in 3 steps, first in step 7.")
    rare = Notice("warning", "Only here.")
    notices = {"a": [cut("30%"), lost], "b": [rare, cut("100%")], "c": [], "d": [lost_2, cut("9.5%")]}
    assert merged(notices) == [
        (["a"], [lost]),
        (["d"], [lost_2]),
        (["a", "b", "d"], [cut("9.5% to 100%")]),
        (["b"], [rare]),
    ]


def test_runs_with_nothing_unusual_are_named_in_one_line(tmp_path):
    steady = [row(i, i / 40, **{"eval/pass@1": 0.5}) for i in range(1, 41)]
    quiet = [make(tmp_path / name, steady, summary={}) for name in ("a", "b")]
    torn = make(tmp_path / "torn", steady, tail="{", summary={})
    page = Page(write_report.write([*quiet, torn]))
    assert "Nothing unusual in a, b." in page.text
    assert re.search(r"<h3>torn</h3>\s*<ul class=\"notices\">\s*<li class=\"note\">The last line", page.html)
    torn_too = make(tmp_path / "torn_too", steady, tail="{", summary={})
    assert "<h3>every run</h3>" in Page(write_report.write([torn, torn_too])).html
    both = Page(write_report.write([*quiet]))
    assert "Nothing unusual in a, b." in both.text and both.html.count("Nothing unusual") == 1


def test_labels_at_the_end_of_lines_keep_their_order_and_a_distance():
    assert spread([10.0, 50.0], 10) == [10.0, 50.0]
    assert spread([50.0, 48.0], 10) == [54.0, 44.0]
    assert spread([100.0, 99.0, 20.0], 10) == [100.0, 90.0, 20.0]
    assert spread([0.0, 0.0, 12.0], 10) == pytest.approx([0.0, 10.0, 20.0])
    assert spread([5.0] * 5, 60) == [0.0, 25.0, 50.0, 75.0, 100.0]  # more than there is room for


def test_a_lone_line_of_a_comparison_is_still_named(tmp_path):
    dirs = [make(tmp_path / "a", [row(1, entropy=1.0), row(2, entropy=2.0)]), make(tmp_path / "b", [row(1), row(2)])]
    chart = drawn(*dirs)["Entropy"]
    assert [label for _, _, label, _ in chart.ends] == ["a"] and chart.latest == ""
    assert chart.foot == "Not drawn: b (not recorded)."


def test_a_slow_comparison_tells_time_in_minutes(tmp_path):
    dirs = [make(tmp_path / n, [row(i, **{"time/step_s": 60.0}) for i in range(1, 11)]) for n in "ab"]
    chart = drawn(*dirs)["Reward by minutes"]
    assert [label for _, label in chart.x_ticks] == ["2", "4", "6", "8", "10"] and chart.x_label == "minutes"


def test_explained_variance_is_asked_of_runs_with_a_critic_only(tmp_path):
    values = {"value/explained_variance": 0.5}
    with_it = make(tmp_path / "a", [row(1, **values), row(2, **values)])
    silent = make(tmp_path / "b", [row(1), row(2)], config=recipe("ppo", critic={"backbone": "copy"}))
    without = make(tmp_path / "c", [row(1), row(2)], config=recipe("grpo"))
    assert drawn(with_it, silent, without)["Explained variance"].foot == "Not drawn: b (not recorded)."
