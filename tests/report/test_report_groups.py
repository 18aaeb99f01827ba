import re
from pathlib import Path
from typing import Any

import pytest

from rlhf_pg.report import tables, write_report
from rlhf_pg.report.bars import held_out_compared
from rlhf_pg.report.charts import Chart
from rlhf_pg.report.curves import mean_line, overlays
from rlhf_pg.report.run_record import RunRecord, read
from rlhf_pg.report.seed_groups import names, seed_groups
from tests.report.report_pages import Page, make, recipe, row, table


def runs(*dirs: Path) -> list[RunRecord]:
    return [read(path) for path in dirs]


def drawn(*dirs: Path) -> dict[str, Chart]:
    charts, _ = overlays(seed_groups(runs(*dirs)))
    return {chart.title: chart for chart in charts}


def seeds(tmp_path: Path) -> list[Path]:
    """Two recipes of three and two seeds; rewards are 0.5, 0.7, 0.9 and 0.1, 0.2, and pass@1 is half of them."""
    dirs = []
    for name, rewards in (("ppo", (0.5, 0.7, 0.9)), ("grpo", (0.1, 0.2))):
        for seed, reward in enumerate(rewards):
            rows = [row(i, reward, **{"samples/total": 10 * i}) for i in range(1, 5)]
            summary: dict[str, Any] = {"after": {"pass@1": reward / 2}, "before": {"pass@1": 0.0}}
            summary |= {"wall_s": 10 + 10 * seed} if reward < 0.9 else {}
            config = recipe(name, seed if name == "ppo" else seed + 5)
            dirs.append(make(tmp_path / f"{name}_s{seed}", rows, config=config, summary=summary))
    return dirs


def test_the_seeds_of_a_recipe_are_one_row_with_mean_lowest_and_highest(tmp_path):
    page = Page(write_report.write(seeds(tmp_path)))
    assert (
        "5 runs of 2 recipes compared" in page.text and "ppo (3 seeds)" in page.text and "grpo (2 seeds)" in page.text
    )
    rows = re.split("<h2>Over seeds</h2>", page.html)[1].split("</table>")[0]
    cells = [re.findall(r"([^<>]+)</td>", tr) for tr in rows.split("<tr>")[2:]]
    assert cells == [
        ["ppo", "3", "0.700", "0.500", "0.900", "35.0%", "25.0%", "45.0%"],
        ["grpo", "2", "0.150", "0.100", "0.200", "7.5%", "5.0%", "10.0%"],
    ]
    figures = table(page, "Final figures")
    assert figures["ppo"]["reward"] == "0.700" and figures["ppo"]["pass@1"] == "0.0 → 35.0%"
    assert [cells["wall time"] for cells in table(page, "Cost").values()] == ["unfinished", "0:15"]
    assert list(table(page, "Every run")) == ["ppo_s0", "ppo_s1", "ppo_s2", "grpo_s0", "grpo_s1"]
    assert list(table(page, "Recipes differ in").items()) == [("algorithm.name", {"ppo": "ppo", "grpo": "grpo"})]


def test_seeds_are_thin_lines_of_one_colour_under_their_mean(tmp_path):
    chart = drawn(*seeds(tmp_path))["Reward by samples"]
    assert [(mark.kind, mark.color) for mark in chart.marks] == [("thin", 1)] * 3 + [("thin", 2)] * 2 + [
        ("line", 1),
        ("line", 2),
    ]
    assert [(label, color) for _, _, label, color in chart.ends] == [("ppo", 1), ("grpo", 2)]
    assert chart.legend == [("line", "ppo", 1), ("line", "grpo", 2)]
    assert chart.hovers[0][2] == "ppo: 0.70 (samples 10)\ngrpo: 0.15 (samples 10)"
    bars = held_out_compared(seed_groups(runs(*seeds(tmp_path / "again"))))
    assert bars is not None and "lowest and highest seed" in bars.note
    bar = bars.groups[0][1][0]
    assert (bar.text, bar.low, bar.high) == ("35.0%", 25.0, 45.0)


def test_a_mean_line_goes_step_by_step_as_far_as_all_seeds_have_values():
    lines = [[(1, 0.0), (2, 1.0), (3, 5.0)], [(1, 1.0), (2, 3.0), (3, None)]]
    places = [{1.0: 10.0, 2.0: 20.0, 3.0: 30.0}, {1.0: 20.0, 2.0: 40.0, 3.0: 60.0}]
    assert mean_line(lines, places) == [(15.0, 0.5), (30.0, 2.0)]


def test_only_runs_that_differ_in_nothing_but_the_seed_stand_together(tmp_path):
    def labels(**configs):
        dirs = [make(tmp_path / name, [row(1)], config=config) for name, config in configs.items()]
        return [(group.label, len(group.runs)) for group in seed_groups(runs(*dirs))]

    lr = {"optimizer": {"lr": 0.1}}
    assert labels(a0=recipe("ppo", 0), a1=recipe("ppo", 1)) == [("a", 2)]
    assert labels(b0=recipe("ppo", 0), b1=recipe("ppo", 1, **lr)) == [("b0", 1), ("b1", 1)]
    assert labels(c0=recipe("ppo", 3), c1=recipe("ppo", 3)) == [("c0", 1), ("c1", 1)]  # twice the same seed
    assert labels(d0=recipe("ppo", 0, log={"live": "on"}), d1=recipe("ppo", 1)) == [("d", 2)]
    assert labels(e0="", e1="") == [("e0", 1), ("e1", 1)]
    two = labels(f0=recipe("ppo", 0), f1=recipe("ppo", 1), f2=recipe("ppo", 0, **lr), f3=recipe("ppo", 1, **lr))
    assert two == [("f0 …", 2), ("f2 …", 2)]  # "f" would be either


@pytest.mark.parametrize(
    ("first", "second", "label"),
    [
        ("toy_ppo_s0", "toy_ppo_s1", "toy_ppo"),
        ("ppo-seed-1", "ppo-seed-12", "ppo"),
        ("toy_ppo", "toy_ppo_s1", "toy_ppo"),
        ("runs1", "runs2", "runs"),
        ("gsm8k_1", "gsm8k_2", "gsm8k"),
        ("left", "right", "left …"),
    ],
)
def test_a_recipe_is_named_as_its_runs_without_the_seed(tmp_path, first, second, label):
    dirs = [make(tmp_path / name, [row(1)], config=recipe("ppo", i)) for i, name in enumerate((first, second))]
    (group,) = seed_groups(runs(*dirs))
    assert group.label == label
    assert names([group], group.runs) == label
    single = f"{first} (seed 0)" if first == label else first
    assert names([group], group.runs[:1]) == single


def test_a_seed_without_values_is_named_and_not_a_part_of_the_mean(tmp_path):
    dirs = [
        make(tmp_path / f"a_s{seed}", [row(i, **({"entropy": 1.0 + seed} if seed else {})) for i in (1, 2)],
             config=recipe("ppo", seed))
        for seed in range(3)
    ]  # fmt: skip
    chart = drawn(*dirs)["Entropy"]
    assert chart.foot == "Not drawn: a_s0 (not recorded)."
    assert [mark.kind for mark in chart.marks] == ["thin", "thin", "line"]


def test_held_out_figures_of_seeds_measured_at_different_steps_are_not_averaged(tmp_path):
    early = make(tmp_path / "a_s0", [row(i, **({"eval/pass@1": 0.2} if i == 2 else {})) for i in range(1, 5)],
                 config=recipe("ppo", 0))  # fmt: skip
    late = make(tmp_path / "a_s1", [row(i, **({"eval/pass@1": 0.6} if i == 3 else {})) for i in range(1, 5)],
                config=recipe("ppo", 1))  # fmt: skip
    other = make(tmp_path / "b", [row(i) for i in range(1, 5)], config=recipe("grpo"))
    _, later = tables.tables(seed_groups(runs(early, late, other)))
    (equal,) = [t for t in later if t.title.startswith("At equal sam")]
    assert equal.rows[0][-1] == "20.0 to 60.0% (steps 2 to 3)"
