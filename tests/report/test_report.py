import base64
import hashlib
import json
import math
import re
import time
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models

from rlhf_pg.report import write_report
from rlhf_pg.report.curves import curves
from rlhf_pg.report.measures import eval_bounds, eval_points, samples_seen, seconds_spent
from rlhf_pg.report.notices import notices
from rlhf_pg.report.run_record import read
from tests.report.report_pages import Page, make, row

HOSTILE = [
    "</pre></style><script>alert(1)</script>",
    '"><img src="http://evil.example/x" onerror="alert(1)">',
    "{{ 7 * 7 }} {% raw %} \x1b[31m \u202e \ud800",
    "<svg onload=alert(1)><a href=javascript:alert(1)>",
]


def texts(run_dir):
    return [n.text for n in notices(read(run_dir))]


@pytest.fixture
def hostile(tmp_path):
    everywhere: dict[str, Any] = {
        f"{kind}/{h}": v for h in HOSTILE for kind, v in (("reward", 0.5), ("outcome", 1), ("odd", None))
    }
    everywhere[f"eval/pass@{HOSTILE[0]}"] = 0.1
    samples = [
        {k: h for k in ("prompt", "completion", "answer", "outcome", "finish", "detail", "prompt_id")}
        | {"reward": float(i), "parts": {h: 1.0, "b": 2.0}, "tokens": [1, 2], "logp": [-0.1, -2.0], "step": h}
        for i, h in enumerate(HOSTILE)
    ]
    return make(
        tmp_path / "<script>alert(3)<:script>",
        [row(i, **everywhere) for i in range(1, 9)],
        config="\n".join(f"a{i}: {json.dumps(h)}" for i, h in enumerate(HOSTILE)),
        summary={"before": {f"pass@{h}": 0.1 for h in HOSTILE}, "after": {}, "algorithm": HOSTILE[0]},
        samples={3: samples},
    )


@pytest.mark.parametrize("several", [False, True])
def test_markup_from_a_run_is_inert_in_the_report(hostile, tmp_path, several):
    dirs = [hostile, make(tmp_path / "other", [row(1)])] if several else [hostile]
    page = Page(write_report.write(dirs, tmp_path / "r.html"))
    scripts = [attributes for tag, attributes in page.tags if tag == "script"]
    assert scripts == [{}] if several else [{"type": "application/json", "id": "data"}, {}]
    assert not {"img", "a", "iframe", "link", "object", "embed", "base"} & {tag for tag, _ in page.tags}
    names = {name for _, attributes in page.tags for name in attributes}
    assert not [n for n in names if n.startswith("on") or n in ("src", "href", "srcdoc", "action", "xlink:href")]
    assert "<script>alert(3)<:script>" in page.text
    if not several:
        assert HOSTILE[0] in page.text and HOSTILE[1] in page.text
        assert "{{ 7 * 7 }} {% raw %} \\x1b[31m \\u202e \\ud800" in page.text
    assert "\x1b" not in page.html and "\u202e" not in page.html


def test_styles_take_numbers_only(hostile):
    page = Page(write_report.write([hostile]))
    styles = {attributes["style"] for _, attributes in page.tags if "style" in attributes}
    assert styles and all(
        re.fullmatch(r"((top|left|width|--s|margin|max-height):(-?[\d.]+%?|none);?)+", s or "") for s in styles
    )


def test_the_page_needs_no_network_and_forbids_it(tmp_path):
    page = Page(write_report.write([make(tmp_path / "run", [row(i) for i in range(1, 30)])]))
    assert not re.search(r"(https?:)?//\w", page.html) and "url(" not in page.html and "@import" not in page.html
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(page.scripts[-1].encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_before_and_after_come_with_their_intervals(tmp_path):
    before = {"pass@1": 0.37, "pass@1_low": 0.33, "pass@1_high": 0.41, "pass@8": 0.7, "greedy": 0.6}
    after = {"pass@1": 0.9, "pass@1_low": 0.87, "pass@1_high": 0.925, "pass@8": 0.99, "greedy": 0.96}
    summary = {"before": before, "after": after, "wall_s": 301.4, "steps": 2, "samples": 12800, "algorithm": "grpo"}
    page = Page(write_report.write([make(tmp_path / "run", [row(1), row(2)], summary=summary)]))
    words = re.sub(r"\s+", " ", page.text)
    assert "held-out pass@1 90.0% 87.0 – 92.5 from 37.0% (before) 33.0 – 41.0" in words
    assert "held-out greedy 96.0% from 60.0% (before)" in words
    assert "5 min 1 s" in words and "12.8k" in words
    assert re.findall(r'track c(\d)"><i style="width:([\d.]+)%"', page.html)[:2] == [("8", "37.00"), ("1", "90.00")]


def test_a_torn_last_line_is_skipped_and_said(tmp_path):
    run_dir = make(tmp_path / "run", [row(1), row(2)], tail='{"step": 3, "reward/me')
    run = read(run_dir)
    assert [r["step"] for r in run.steps] == [1, 2] and run.torn and run.unreadable == {"metrics.jsonl": 1}
    assert any("last line of metrics.jsonl is incomplete" in text for text in texts(run_dir))
    assert "2 steps" in Page(write_report.write([run_dir])).text


def test_damaged_lines_inside_are_counted_apart_from_a_torn_end(tmp_path):
    run_dir = make(tmp_path / "run", [row(1)], tail='garbage\n[1]\n{"step": null}\n{"step": 2}\n{"st')
    assert [r["step"] for r in read(run_dir).steps] == [1, 2]
    assert "metrics.jsonl: 3 lines could not be read; skipped." in texts(run_dir)


def test_a_step_logged_twice_after_a_resume_counts_once_with_its_last_line(tmp_path):
    run = read(make(tmp_path / "run", [row(1, 0.1), row(2, 0.2), row(2, 0.9), row(3, 0.3)]))
    assert [(r["step"], r["reward/mean"]) for r in run.steps] == [(1, 0.1), (2, 0.9), (3, 0.3)]


def test_missing_files_are_named(tmp_path):
    run_dir = make(tmp_path / "run", [row(1)])
    (run_dir / "config.yaml").unlink()
    assert "summary.json is missing: the run has not finished, or was stopped." in texts(run_dir)
    assert "config.yaml is missing: no configuration." in texts(run_dir)
    write_report.write([run_dir])


@pytest.mark.parametrize("content", ["", "\n", "{", "null\n", "[]"])
def test_a_run_without_a_whole_step_still_has_a_page(tmp_path, content):
    (tmp_path / "run").mkdir()
    for name in ("metrics.jsonl", "summary.json", "config.yaml"):
        (tmp_path / "run" / name).write_text(content)
    assert "no step yet" in Page(write_report.write([tmp_path / "run"])).text


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no run directory given"):
        write_report.write([])
    with pytest.raises(ValueError, match=r"no run directory .*nothing"):
        write_report.write([tmp_path / "nothing"])
    with pytest.raises(ValueError, match=r"holds no run: expected one of metrics\.jsonl"):
        write_report.write([tmp_path])


def test_noteworthy_things_are_said_in_words(tmp_path):
    cut_off = {"completion/truncated": 0.3, "completion/truncation_cost": 0.25, "reward/std": 0.4}
    rows = [row(i, **{"kl/ref": 0.02} | cut_off) for i in range(1, 41)]
    rows[29] |= {"kl/ref": 4.0, "grad_norm": None, "outcome/error": 3, "outcome/timeout": 1}
    notes = texts(make(tmp_path / "run", rows))
    assert "grad_norm was not a finite number in 1 step, first in step 30." in notes
    assert "3 samples (0.7%): the reward function failed; they were left out of training." in notes  # of 400 + 3 + 1
    assert "1 sample (0.2%): the reward took too long; they were left out of training." in notes
    lower = "30% of the completions of late steps were cut off, and earned 0.25 less than the others"
    assert f"{lower}: raise rollout.max_new_tokens." in notes
    assert "KL to the reference leapt in 1 step, highest 4 in step 30: lower optimizer.lr if it stays up." in notes


def test_rollouts_of_another_policy_are_noted_by_what_their_weights_leave(tmp_path):
    engine = [row(i, **{"mismatch/kl": 0.02}) for i in range(1, 41)]
    assert any("disagree on log-probs (KL 0.02 per token)" in text for text in texts(make(tmp_path / "a", engine)))
    weighed = [r | {"mismatch/ess": 0.9, "mismatch/capped": 0.0} for r in engine]
    assert not any("disagree" in text or "weights" in text for text in texts(make(tmp_path / "b", weighed)))
    few = [r | {"mismatch/ess": 0.4, "mismatch/capped": 0.1} for r in engine]
    assert any(
        text.startswith("Importance weights leave 40% of the tokens") for text in texts(make(tmp_path / "c", few))
    )


def test_a_steady_run_has_nothing_noteworthy(tmp_path):
    rows = [row(i, reward=i / 40, **{"kl/ref": 0.001 * i, "entropy": 1.0, "eval/pass@1": 0.5}) for i in range(1, 41)]
    assert texts(make(tmp_path / "run", rows, summary={})) == []


def test_a_fall_of_reward_and_of_pass_at_1_are_problems(tmp_path):
    before = {"pass@1": 0.5, "pass@1_low": 0.45, "pass@1_high": 0.55}
    summary = {"before": before, "after": {"pass@1": 0.4, "pass@1_low": 0.35, "pass@1_high": 0.44}}
    run_dir = make(tmp_path / "run", [row(i, 1 - i / 50) for i in range(1, 41)], summary=summary)
    problems = [n.text for n in notices(read(run_dir)) if n.level == "problem"]
    assert problems == ["The reward fell, from 0.950 to 0.230.", "Held-out pass@1 fell by 10.0 points."]


def test_overlapping_intervals_are_no_proof_either_way(tmp_path):
    before = {"pass@1": 0.5, "pass@1_low": 0.45, "pass@1_high": 0.55}
    for name, shift in (("better", 0.1), ("worse", -0.1)):
        after = {key: value + shift for key, value in before.items()}
        notes = texts(make(tmp_path / name, [row(1)], summary={"before": before, "after": after}))
        assert notes == ["The intervals of pass@1 before and after overlap: the difference may be chance."]


def test_best_worst_and_excluded_samples_are_shown_under_their_heading(tmp_path):
    def completions(step):
        return [{"completion": f"c{step} {r}", "reward": r, "prompt_id": str(r)} for r in (0.25, 1.0, None, 0.0)]

    page = Page(
        write_report.write([make(tmp_path / "run", [row(1)], samples={s: completions(s) for s in range(1, 9)})])
    )
    headings = ["Best of the last steps", "Worst of the last steps", "Left out of training", "From the first steps"]
    best, worst, left_out, early = re.split("|".join(headings), page.text)[1:]
    assert re.findall(r"c\d \S+", best) == ["c8 1.0", "c7 1.0", "c6 1.0"]
    assert re.findall(r"c\d \S+", worst) == ["c8 0.0", "c7 0.0", "c6 0.0"]
    assert re.findall(r"c\d \S+", left_out) == ["c8 None", "c7 None", "c6 None"]
    assert re.findall(r"c\d \S+", early) == ["c1 0.25", "c1 None", "c2 0.25"]


def test_among_equal_rewards_different_prompts_come_first_and_none_is_shown_twice(tmp_path):
    samples = [{"completion": f"c{i} p{p}", "reward": 1.0, "prompt_id": p} for i, p in enumerate("aaabc")]
    page = Page(write_report.write([make(tmp_path / "run", [row(1)], samples={1: samples})]))
    assert re.findall(r"c\d p.", page.text) == ["c0 pa", "c3 pb", "c4 pc", "c1 pa", "c2 pa"]


def test_tokens_are_shaded_by_one_minus_their_probability(tmp_path):
    sample = {"completion": "ab é", "reward": 1.0, "tokens": [0, 1, 2, 3], "logp": [math.log(0.25), 0.0, -9, -9]}
    run_dir = make(tmp_path / "run", [row(1)], samples={1: [sample]})
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1, "ĠÃ": 2, "©": 3}, []))
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    (run_dir / "model").mkdir()
    tokenizer.save(str(run_dir / "model" / "tokenizer.json"))
    page = Page(write_report.write([run_dir]))
    shades = re.findall(r'<s style="--s:([\d.]+)" title="p ([\d.]+), [^"]*">([^<]*)</s>', page.html)
    assert shades == [("0.75", "0.250", "a"), ("0.00", "1.000", "b"), ("1.00", "0.000", ""), ("1.00", "0.000", " é")]


def test_a_damaged_tokenizer_leaves_the_plain_text_and_is_said(tmp_path):
    samples = {1: [{"completion": "plain", "reward": 1.0, "tokens": [0], "logp": [-0.5]}]}
    run_dir = make(tmp_path / "run", [row(1)], samples=samples)
    (run_dir / "model").mkdir()
    (run_dir / "model" / "tokenizer.json").write_text("{")
    page = Page(write_report.write([run_dir]))
    assert "<pre>plain</pre>" in page.html and "model/tokenizer.json could not be read" in page.text


def test_samples_and_seconds_are_summed_over_steps_with_gaps_filled(tmp_path):
    run = read(make(tmp_path / "run", [row(1), row(2), row(5)]))
    assert samples_seen(run) == {1: 10, 2: 20, 5: 50}
    assert seconds_spent(run) == {1: 2, 2: 4, 5: 10}


def test_samples_are_those_logged_or_those_planned(tmp_path):
    logged = read(make(tmp_path / "a", [row(1, **{"samples/total": 7}), row(2, **{"samples/total": 9})]))
    assert samples_seen(logged) == {1: 7, 2: 9}
    config = "rollout:\n  prompts_per_step: 4\n  samples_per_prompt: 8\n"
    planned = read(make(tmp_path / "b", [{"step": 1}, {"step": 2}], config=config))
    assert samples_seen(planned) == {1: 32, 2: 64}


def test_runs_of_one_name_are_told_apart(tmp_path):
    page = Page(write_report.write([make(tmp_path / "a" / "run", [row(1)]), make(tmp_path / "b" / "run", [row(1)])]))
    assert "a/run" in page.text and "b/run" in page.text


def test_only_charts_with_data_are_drawn_and_the_others_named(tmp_path):
    page = Page(write_report.write([make(tmp_path / "run", [row(1), row(2)])]))
    assert "Reward" in page.titles() and "Entropy" not in page.titles()
    assert re.search(r"Not recorded in this run: .*Entropy", page.text)


def test_ten_thousand_steps_make_a_small_page_quickly(tmp_path):
    keys = [
        "kl/ref",
        "entropy",
        "clip/fraction",
        "grad_norm",
        "completion/length_mean",
        "time/rollout_s",
        "time/update_s",
    ]
    rows = [row(i, 0.5 + 0.4 * math.sin(i), **{k: 1 + math.cos(i * 7) for k in keys}) for i in range(1, 10_001)]
    run_dir = make(tmp_path / "run", rows)
    began = time.process_time()
    out = write_report.write([run_dir])
    assert time.process_time() - began < 10 and out.stat().st_size < 1_500_000


def test_a_rate_of_odd_numbers_is_a_gap_in_its_curve(tmp_path):
    rows = [row(i, **{"time/rollout_s": 2.0, "tokens/generated": 10 * i}) for i in range(1, 5)]
    rows[1]["time/rollout_s"], rows[2]["tokens/generated"] = math.nan, math.inf
    charts, _ = curves(read(make(tmp_path / "run", rows)))
    (speed,) = [chart for chart in charts if chart.title == "Generation speed"]
    assert [text for _, _, text in speed.hovers if "smoothed: 5.0" in text] and "inf" not in str(speed)
    assert [mark.kind for mark in speed.marks] == ["dot", "dot"]  # the first and the last step, each between gaps


def test_a_held_out_figure_that_is_not_a_number_is_left_out(tmp_path):
    before = {"pass@1": 0.25, "pass@1_low": math.nan, "pass@1_high": math.nan}
    run = read(make(tmp_path / "run", [row(1), row(2)], summary={"before": before, "after": {"pass@1": math.nan}}))
    assert eval_points(run) == [(0.0, 25.0)] and eval_bounds(run, [(0.0, 25.0)], "pass@1") == [None]
    assert "25.0%" in Page(write_report.write([run.path])).text
