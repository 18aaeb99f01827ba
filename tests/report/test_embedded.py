"""What a page holds for its script: all of a run, and never as markup."""

import json
import math
import re

import pytest

from rlhf_pg.report import embedded, write_report
from rlhf_pg.report.notices import notices
from rlhf_pg.report.run_record import read
from tests.report.report_pages import Page, make, row

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<!-- <script> ]]> &amp; &lt; '\"",
    "\x00\x07\x1b[31m\x7f\x9b",
    "\u202e\u200b\u2028\ufeff",
    "\ud800 lone \udfff",
    "{{ 7 * 7 }} {% raw %} {#",
]


def samples(page):
    """The embedded samples as objects."""
    rollouts = page.data()["rollouts"]
    return [
        dict(zip(rollouts["columns"], values, strict=True)) | rollouts["prompts"][values[1]]
        for values in rollouts["rows"]
    ]


@pytest.mark.parametrize("text", HOSTILE)
def test_text_of_a_run_is_data_in_the_page_character_for_character(tmp_path, text):
    sample = {key: text for key in ("prompt", "completion", "answer", "outcome", "finish", "detail", "prompt_id")}
    problem = {"step": 0, "id": text, "prompt": text, "answer": text, "n": 1, "correct": 0, "greedy": None}
    run = make(tmp_path / "run", [row(1, **{f"reward/{text}": 0.5})], samples={1: [sample | {"parts": {text: 1.0}}]})
    (run / "eval.jsonl").write_text(json.dumps(problem) + "\n")
    page = Page(write_report.write([run]))
    (found,) = samples(page)
    assert all(found[key] == text for key in sample) and found["parts"] == {text: 1.0}
    assert page.data()["problems"]["rows"][0]["prompt"] == text and f"reward/{text}" in page.data()["metrics"]
    raw = page.html.split('id="data">')[1].split("</script>")[0]
    assert "<" not in raw and raw.isascii() and raw.isprintable()
    assert [tag for tag, _ in page.tags].count("script") == 2


def test_all_samples_of_all_steps_are_there_with_their_advantages(tmp_path):
    def completions(step):
        return [
            {"completion": f"{step}/{i}", "reward": i / 10, "advantage": i - 150, "prompt": "p"} for i in range(300)
        ]

    page = Page(write_report.write([make(tmp_path / "run", [row(1)], samples={s: completions(s) for s in (1, 2, 9)})]))
    assert [s["completion"] for s in samples(page)] == [f"{step}/{i}" for step in (1, 2, 9) for i in range(300)]
    assert [s["advantage"] for s in samples(page)][:2] == [-150, -149]
    assert page.data()["rollouts"]["prompts"] == [{"prompt_id": "", "prompt": "p", "answer": None}]  # held once


def test_the_strip_has_a_digit_per_token_from_certain_to_surprising(tmp_path):
    sample = {"completion": "abcd", "tokens": [1, 2, 3, 4], "logp": [0.0, math.log(0.25), -30, None]}
    (found,) = samples(Page(write_report.write([make(tmp_path / "run", [row(1)], samples={1: [sample]})])))
    assert found["surprise"] == "0790" and found["tokens"] == 4


def test_odd_values_are_missing_ones(tmp_path):
    odd = {"reward": math.nan, "advantage": "high", "parts": [1], "tokens": 3, "logp": "x", "step": "two", "answer": 7}
    run = make(tmp_path / "run", [row(1), row(2, math.inf, kind="warm", flag=True)], samples={2: [odd]})
    page = Page(write_report.write([run]))
    (found,) = samples(page)
    assert (found["reward"], found["advantage"], found["parts"], found["tokens"]) == (None, None, {}, None)
    assert found["step"] == 2 and found["answer"] == "7"  # the step of the file's name
    metrics = page.data()["metrics"]
    assert metrics["reward/mean"] == [0.5, None] and metrics["kind"] == [None, "warm"] and metrics["step"] == [1, 2]


def test_metrics_have_six_digits(tmp_path):
    page = Page(write_report.write([make(tmp_path / "run", [row(1, 1 / 3, big=123456789, small=1.23456789e-9)])]))
    metrics = page.data()["metrics"]
    assert (metrics["reward/mean"], metrics["big"], metrics["small"]) == ([0.333333], [123456789], [1.23457e-9])


def test_samples_that_would_make_the_page_too_large_are_thinned_by_steps_and_that_is_said(tmp_path, monkeypatch):
    steps = {step: [{"completion": "x" * 100, "step": step}] for step in range(1, 11)}
    run = make(tmp_path / "run", [row(1)], samples=steps)
    monkeypatch.setattr(embedded, "CHARACTERS", 350)  # three of ten
    held = embedded.samples(read(run))
    assert [values[0] for values in held["rows"]] == [1, 5, 9] and "Of every 4th logged step" in held["note"]
    monkeypatch.setattr(embedded, "CHARACTERS", 1000)
    held = embedded.samples(read(run))
    assert len(held["rows"]) == 10 and "every" not in held["note"]


def test_a_damaged_line_of_samples_is_counted_once(tmp_path):
    run = make(tmp_path / "run", [row(1)], samples={1: [{"completion": "a"}]})
    with (run / "rollouts/step_00000001.jsonl").open("a") as file:
        file.write('{"torn": \n[1]\n')
    record = read(run)
    page = write_report.single(record)
    assert page.data and len(page.data["rollouts"]["rows"]) == 1
    assert "rollouts/step_00000001.jsonl: 2 lines could not be read; skipped." in [n.text for n in notices(record)]


def test_a_page_of_several_runs_embeds_none(tmp_path):
    runs = [make(tmp_path / name, [row(1)], samples={1: [{"completion": "secret"}]}) for name in "ab"]
    page = Page(write_report.write(runs, tmp_path / "both.html"))
    assert len(page.scripts) == 1 and "secret" not in page.html
    assert not re.search(r'id="(samples|problems|download)"', page.html)
