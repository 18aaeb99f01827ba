import re
from typing import Any

import pytest

from rlhf_pg.report import write_report
from rlhf_pg.report.charts import Chart
from rlhf_pg.report.curves import curves
from rlhf_pg.report.notices import notices
from rlhf_pg.report.run_record import read
from tests.report.report_pages import Page, make, recipe, row

CRITIC = {"Explained variance", "Critic loss", "Critic gradient norm"}
REGION = {"Trust region", "Improvement", "Line search", "Residual", "Passes"}
VALUES = {"value/loss": 0.1, "value/explained_variance": 0.7, "value/mean": 0.5, "value/grad_norm": 1.0}
STEP = {
    "trust/kl": 0.004,
    "trust/max_kl": 0.01,
    "trust/cg_residual": 0.2,
    "trust/line_search_steps": 2,
    "trust/accepted": 1.0,
    "trust/improvement": 0.03,
    "trust/forwards": 6.0,
    "trust/backwards": 3.0,
}


def charts_of(tmp_path, rows, **sections: Any) -> tuple[dict[str, Chart], list[str]]:
    charts, absent = curves(read(make(tmp_path / "run", rows, config=recipe("any", **sections))))
    return {chart.title: chart for chart in charts}, absent


def test_critic_and_trust_region_have_their_charts_where_they_were_logged(tmp_path):
    charts, absent = charts_of(tmp_path, [row(i, **VALUES, **STEP) for i in (1, 2, 3)])
    assert charts.keys() >= CRITIC | REGION and not {*absent} & (CRITIC | REGION)
    assert charts["Explained variance"].y_ticks[-1] == (0.0, "1.0")  # 1 is the best there is: the axis ends there
    assert [(label, color) for _, label, color in charts["Passes"].legend] == [("forwards", 1), ("backwards", 2)]


def test_a_run_without_critic_and_trust_region_misses_neither(tmp_path):
    charts, absent = charts_of(tmp_path, [row(1), row(2)], kl={"coefficient": 0.0}, data={"train": {}})
    assert not (charts.keys() | {*absent}) & (CRITIC | REGION | {"KL to the reference", "Clipped", "Held-out"})
    assert {"Entropy", "Memory", "Gradient norm"} <= {*absent}


def test_what_a_recipe_asks_for_and_the_run_did_not_log_is_missed(tmp_path):
    sections: dict[str, Any] = {"critic": {"backbone": "copy"}, "kl": {"coefficient": 0.1, "target": 0.5}}
    sections["algorithm"] = {"name": "trpo", "options": {"cg_iterations": 10, "clip_low": 0.2}}
    sections |= {"data": {"train": {}, "eval": {}}, "rewards": [{"fn": "a"}, {"fn": "b"}]}
    _, absent = charts_of(tmp_path / "a", [row(1), row(2)], **sections)
    expected = {"KL to the reference", "KL coefficient", "Clipped", "Held-out", "Reward by function"}
    assert {*absent} >= CRITIC | REGION | expected
    _, absent = charts_of(tmp_path / "b", [row(1), row(2)], rewards=[{"fn": "a"}])
    assert "Reward by function" not in absent


def test_the_trust_region_is_drawn_against_its_limit_and_refusals_are_counted(tmp_path):
    rows = [row(i, **STEP | ({"trust/kl": 0.0, "trust/accepted": 0.0} if i == 3 else {})) for i in range(1, 5)]
    charts, _ = charts_of(tmp_path, rows)
    region = charts["Trust region"]
    (limit,) = [mark for mark in region.marks if mark.kind == "limit"]
    heights = [float(y) for y in re.findall(r" ([\d.]+)", limit.path)]
    (top,) = [top for top, label in region.y_ticks if label == "0.010"]
    assert heights == pytest.approx([top * 10] * 4, abs=0.1) and 0 < top < 10  # inside the axis, above all values
    assert "1 of 4 steps refused" in region.note
    assert ("limit", "limit", 5) in region.legend


def test_a_limit_far_above_the_values_is_inside_the_axis_in_spite_of_a_spike(tmp_path):
    charts, _ = charts_of(tmp_path, [row(i, **STEP | {"trust/kl": 2.0 if i == 30 else 1e-5 * i}) for i in range(1, 61)])
    labels = {label: top for top, label in charts["Trust region"].y_ticks}
    assert labels["0.010"] > 0 and "the axis ends below the highest value, 2.00" in charts["Trust region"].note


def test_the_kl_of_an_update_is_drawn_where_several_steps_moved_and_no_trust_region_has_it(tmp_path):
    moved = [row(i, **{"kl/old": 0.002 * i, "update/steps": 4}) for i in (1, 2)]
    charts, _ = charts_of(tmp_path / "a", moved, update={"max_kl": 0.03})
    assert "stops at" in [label for _, label, _ in charts["KL of the update"].legend]
    charts, _ = charts_of(tmp_path / "b", moved)
    assert [kind for kind, _, _ in charts["KL of the update"].legend] == [] and charts["KL of the update"].latest
    still = [row(i, **{"kl/old": 0.0, "update/steps": 1}) for i in (1, 2)]
    charts, absent = charts_of(tmp_path / "c", still)
    assert "KL of the update" not in charts and "KL of the update" not in absent
    charts, _ = charts_of(tmp_path / "d", [row(i, **STEP, **{"kl/old": 0.004}) for i in (1, 2)])
    assert "KL of the update" not in charts


def test_memory_and_the_adapted_coefficient_are_drawn(tmp_path):
    rows = [row(i, **{"memory/peak_gib": 500 + i, "kl/coefficient": 0.1 * i}) for i in (1, 2)]
    charts, _ = charts_of(tmp_path, rows)
    assert charts["Memory"].latest == "502" and charts["KL coefficient"].latest != ""


def test_the_page_shows_the_limit_as_a_broken_line(tmp_path):
    page = Page(write_report.write([make(tmp_path / "run", [row(i, **STEP) for i in (1, 2)])]))
    assert re.search(r'<path class="limit c5" d="M0\.0 [\d.]+L1000\.0 ', page.html)
    assert ".limit { stroke:var(--c); stroke-width:1.5; stroke-dasharray" in page.html


def noted(tmp_path, rows):
    return [n.text for n in notices(read(make(tmp_path, rows, summary={}))) if "held-out" not in n.text]


def test_a_useless_critic_and_refused_steps_are_said(tmp_path):
    def rows(explained, accepted):
        values = {"value/explained_variance": explained, "trust/accepted": accepted}
        return [row(i, i / 40, **values) for i in range(1, 41)]

    assert noted(tmp_path / "good", rows(0.1, 1.0)) == []
    assert noted(tmp_path / "bad", rows(-0.25, 0.0)) == [
        "The critic still predicts returns worse than their mean would (explained variance -0.25).",
        "100% of late steps were refused: within the limit none improved the surrogate.",
    ]
    assert noted(tmp_path / "early", rows(-0.25, 1.0)[:19]) == []
    odd = rows(0.1, 1.0)
    odd[3]["trust/curvature_failed"] = odd[9]["trust/curvature_failed"] = 1.0
    assert noted(tmp_path / "odd", odd) == [
        "In 2 steps the curvature was not positive and none was taken: raise its damping."
    ]


def test_kl_that_climbs_is_no_leap_and_one_that_jumps_is(tmp_path):
    climbing = [row(i, i / 40, **{"kl/ref": 1e-4 * 1.5**i}) for i in range(1, 25)]
    assert noted(tmp_path / "climbing", climbing) == []
    uneven = [row(i, i / 40, **{"kl/ref": 0.001 if i % 2 else 0.06}) for i in range(1, 25)]
    assert noted(tmp_path / "uneven", uneven) == []
    tiny = [row(i, i / 40, **{"kl/ref": 0.04 if i == 20 else 0.0001}) for i in range(1, 25)]
    assert noted(tmp_path / "tiny", tiny) == []
    jumping = [row(i, i / 40, **{"kl/ref": 0.5 if i == 20 else 0.01}) for i in range(1, 25)]
    assert noted(tmp_path / "jumping", jumping) == [
        "KL to the reference leapt in 1 step, highest 0.5 in step 20: lower optimizer.lr if it stays up."
    ]


def test_the_gradient_norm_of_a_trust_region_is_not_called_clipped(tmp_path):
    norm = {"grad_norm": 0.5}
    plain, _ = charts_of(tmp_path / "a", [row(i, **norm) for i in (1, 2)])
    region, _ = charts_of(tmp_path / "b", [row(i, **norm, **STEP) for i in (1, 2)])
    assert plain["Gradient norm"].note == "before clipping" and region["Gradient norm"].note == "of the surrogate"
