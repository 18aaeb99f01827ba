"""A report says what ran: of one run every launch, of several what differs between them."""

import json
import re

from rlhf_pg.report import write_report
from tests.report.report_pages import Page, make, row, table

LAUNCH = {
    "started": "2026-01-02T03:04:05+00:00",
    "from_step": 0,
    "command": "rlhf-pg train r.yaml",
    "git": {"commit": "c0ffee", "dirty": True},
    "seed": 3,
    "layout": "DeepSpeed ZeRO-3",
    "processes": 2,
    "versions": {"rlhf_pg": "0.1.0", "torch": "2.13.0"},
}


def run(folder, *launches):
    made = make(folder, [row(i) for i in range(1, 4)])
    (made / "run.json").write_text(json.dumps({"launches": list(launches)}))
    return made


def test_what_ran_is_a_table_also_while_the_run_goes_on(tmp_path):
    text = Page(write_report.write([run(tmp_path / "a", LAUNCH)])).html.split("<h2>What ran</h2>")[1]
    cells = re.findall(r"<td>([^<]*)</td>", text.split("</table>")[0])
    assert dict(zip(cells[::2], cells[1::2], strict=True)) == {
        "started": "2026-01-02T03:04:05+00:00",
        "command": "rlhf-pg train r.yaml",
        "commit": "c0ffee, with changes that were not committed",
        "seed": "3",
        "layout": "DeepSpeed ZeRO-3",
        "processes": "2",
        "versions": "rlhf_pg 0.1.0, torch 2.13.0",
    }


def test_each_launch_of_a_resumed_run_is_a_column(tmp_path):
    again = LAUNCH | {"from_step": 20, "git": None, "device": "H100"}
    cells = table(Page(write_report.write([run(tmp_path / "a", LAUNCH, again)])), "What ran")
    assert cells["commit"] == {
        "from step 0": "c0ffee, with changes that were not committed",
        "from step 20": "none",
    }
    assert cells["device"] == {"from step 0": "–", "from step 20": "H100"}


def test_of_several_runs_only_what_differs_is_told(tmp_path):
    other = LAUNCH | {"seed": 4, "command": "else", "layout": "DDP"}
    runs = [run(tmp_path / "a", LAUNCH), run(tmp_path / "b", other)]
    assert table(Page(write_report.write(runs)), "Launches differ in") == {
        "layout": {"a": "DeepSpeed ZeRO-3", "b": "DDP"}
    }
    same = [run(tmp_path / name, LAUNCH) for name in ("c", "d")]
    assert "Launches differ in" not in Page(write_report.write(same)).html


def test_a_damaged_or_hostile_run_json_breaks_nothing(tmp_path):
    hostile = {"started": ["<script>alert(1)</script>"], "git": 3, "versions": {"<b>": None}, "<i>": {"x": [1]}}
    page = Page(write_report.write([run(tmp_path / "a", hostile, "no launch", None)]))
    assert "alert(1)" not in "".join(page.scripts) and "<i>" not in page.html.split("<h2>What ran</h2>")[1][:900]
    torn = run(tmp_path / "torn")
    (torn / "run.json").write_text('{"launches": [')
    assert "run.json could not be read; skipped." in Page(write_report.write([torn])).text
    assert "What ran" not in Page(write_report.write([make(tmp_path / "old", [row(1)])])).html
