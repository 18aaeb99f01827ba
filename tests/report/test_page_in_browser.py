"""What a browser makes of the page: filters, zoom, downloads, and text of a model that stays text."""

import json
import re
from urllib.parse import unquote

import pytest

from rlhf_pg.report import write_report
from tests.report.browser import after, needs_chromium, opened
from tests.report.report_pages import make, row

pytestmark = needs_chromium

ATTACK = "</script><img src=x onerror='document.title=1'><b>bold</b>\u202e\x1b \ud800"


def problem(step, name, correct, greedy=None):
    return {"step": step, "id": name, "prompt": f"<s>\n{name}\n</s>", "answer": "1", "n": 4, "correct": correct} | {
        "greedy": greedy
    }


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """40 steps of two samples; the reward of the first is the step / 100, of the second none."""
    samples = {
        step: [
            {"completion": f"first {step}", "reward": step / 100, "outcome": "scored", "advantage": (step - 20) / 10},
            {"completion": f"second {step} {ATTACK}", "outcome": "excluded", "prompt": ATTACK, "detail": ATTACK},
        ]
        for step in range(1, 41)
    }
    rows = [row(i, reward=i / 40, entropy=2.0) for i in range(1, 41)]
    run = make(tmp_path_factory.mktemp("browser") / "run", rows, samples=samples)
    lines = [problem(0, "up", 0), problem(0, "down", 4), problem(0, "same", 2)]
    lines += [problem(40, "up", 4), problem(40, "down", 1), problem(40, "same", 2)]
    (run / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return write_report.write([run])


def answer(page, script):
    """What the script passed to done(), as JSON."""
    document = after(page, f"const say = (value) => done(encodeURIComponent(JSON.stringify(value)));\n{script}")
    found = re.search(r'<p id="done">([^<]*)</p>', document)
    assert found, document[-2000:]
    return json.loads(unquote(found[1]))


FILTERED = """
const form = samples.section.querySelector("form"), values = %s;
for (const [name, value] of Object.entries(values)) form.elements[name].value = value;
samples.refresh(0);
say([samples.section.querySelector(".status").textContent,
     [...samples.section.querySelectorAll(".excerpt")].map((e) => e.textContent.slice(0, 9).trim())]);
"""


def test_the_page_runs_its_script_under_its_own_policy_and_shows_a_page_of_rows(page):
    document = opened(page.as_uri())
    assert document.count('<details class="sample">') == 25 and "80 samples" in document
    assert "page 1 of 4" in document and "3 problems" in document


def test_text_of_a_model_stays_text(page):
    script = """
    samples.section.querySelectorAll("details").forEach((d) => d.open = true);
    setTimeout(() => say([document.title, document.images.length, samples.section.querySelectorAll("b, script").length,
                          samples.section.querySelector("pre").textContent]), 50);
    """
    title, images, elements, prompt = answer(page, script)
    assert (title, images, elements) == ("run · rlhf_pg", 0, 0)
    assert prompt == "</script><img src=x onerror='document.title=1'><b>bold</b>\\u202e\\x1b \\ud800"


@pytest.mark.parametrize(
    ("values", "count", "first"),
    [
        ({"from": 39}, "4 of 80 samples", ["second 40", "first 40", "second 39", "first 39"]),
        ({"from": 3, "to": 3, "sort": "order"}, "2 of 80 samples", ["first 3", "second 3"]),
        ({"least": 0.395}, "1 of 80 samples", ["first 40"]),
        ({"most": 0.02, "sort": "-reward"}, "2 of 80 samples", ["first 2", "first 1"]),
        ({"outcome": "excluded", "to": 1}, "1 of 80 samples", ["second 1"]),
        ({"text": "FIRST 1", "sort": "advantage", "to": 11}, "3 of 80 samples", ["first 1", "first 10", "first 11"]),
        ({"text": "onerror='", "from": 40}, "1 of 80 samples", ["second 40"]),
        ({"sort": "-advantage", "to": 2}, "4 of 80 samples", ["first 2", "first 1", "second 1", "second 2"]),
        ({"text": "nowhere"}, "0 of 80 samples", []),
    ],
)
def test_samples_are_filtered_and_sorted(page, values, count, first):
    assert answer(page, FILTERED % json.dumps(values)) == [count, first]


def test_problems_are_shown_by_what_became_of_them(page):
    script = """
    const form = problems.section.querySelector("form"), found = {};
    for (const kind of ["gained", "lost", "same", "never"]) {
      form.elements.kind.value = kind;
      problems.refresh(0);
      const lines = [...problems.section.querySelectorAll("tbody tr")];
      found[kind] = lines.map((tr) => [...tr.cells].map((td) => td.textContent));
    }
    say(found);
    """
    assert answer(page, script) == {
        "gained": [["up", "1", "0 of 4", "4 of 4", "+100"]],
        "lost": [["down", "1", "4 of 4", "1 of 4", "−75"]],
        "same": [["same", "1", "2 of 4", "2 of 4", "0"]],
        "never": [],
    }


def test_zoom_moves_all_charts_of_an_axis_and_labels_them_anew(page):
    script = """
    const figures = [...document.querySelectorAll("figure")];
    const state = () => [
      figures.filter((f) => !f.classList.contains("zoomed")).map((f) => f.querySelector("h3").textContent),
      figures[0].querySelector("svg").getAttribute("viewBox"),
      [...figures[0].querySelectorAll(".x.made")].map((s) => s.textContent),
    ];
    zoomTo(figures[0], [10, 20]);
    const zoomed = state();
    figures[0].querySelector(".reset").click();
    say([...zoomed, ...state().slice(1)]);
    """
    others, box, ticks, reset, none = answer(page, script)
    left, _, width, height = map(float, box.split())
    assert others == ["Held-out"]  # a single point
    assert ticks == ["10", "12", "14", "16", "18", "20"]
    assert left == pytest.approx(1000 * 9 / 39) and width == pytest.approx(1000 * 10 / 39)  # steps 1 to 40 are 39
    assert height < 500  # the reward rose by a quarter of its range there
    assert (reset, none) == ("0 0 1000 1000", [])


def test_keys_zoom_and_move_and_escape_shows_all(page):
    script = """
    const svg = document.querySelector("figure svg"), boxes = [];
    for (const key of ["+", "ArrowRight", "Escape"]) {
      svg.dispatchEvent(new KeyboardEvent("keydown", { key }));
      boxes.push(svg.getAttribute("viewBox").split(" ").map(Number));
    }
    say([svg.tabIndex, boxes.map(([left, , width]) => [Math.round(left), Math.round(width)])]);
    """
    assert answer(page, script) == [0, [[250, 500], [375, 500], [0, 1000]]]


def test_downloads_are_what_was_logged(page):
    script = """
    const texts = [];
    URL.createObjectURL = (blob) => (texts.push(blob.text()), "#");
    document.querySelectorAll("#download button").forEach((button) => button.click());
    Promise.all(texts).then(say);
    """
    csv, metrics, samples, problems = answer(page, script)
    assert csv.splitlines()[0] == "step,reward/mean,time/step_s,outcome/scored,outcome/error,entropy"
    assert csv.splitlines()[1] == "1,0.025,2,10,0,2" and len(csv.splitlines()) == 41
    assert json.loads(metrics.splitlines()[39])["reward/mean"] == 1
    last = json.loads(samples.splitlines()[79])
    assert last["completion"] == f"second 40 {ATTACK}" and last["prompt"] == ATTACK and last["step"] == 40
    first = json.loads(problems.splitlines()[0])
    assert first == {
        "step": 0,
        "id": "up",
        "prompt": "<s>\nup\n</s>",
        "answer": "1",
        "n": 4,
        "correct": 0,
        "greedy": None,
    }


def test_ten_thousand_samples_put_one_page_of_rows_into_the_document(tmp_path):
    samples = {
        step: [{"completion": f"{step} {i}", "reward": 1.0, "prompt": f"p{i}"} for i in range(100)]
        for step in range(100)
    }
    document = opened(write_report.write([make(tmp_path / "run", [row(1)], samples=samples)]).as_uri())
    assert "10,000 samples" in document and document.count('<details class="sample">') == 25


def test_without_a_script_curves_summary_and_chosen_samples_are_there_and_no_empty_controls(page):
    copy = page.with_name("no_script.html")
    copy.write_text(re.sub(r"sha256-[\w+/]{43}=", f"sha256-{'A' * 43}=", page.read_text()))  # refused
    document = opened(copy.as_uri())
    assert "1 gained, 1 lost, 1 unchanged" in document and document.count("<svg") >= 3
    assert "Best of the last steps" in document and "first 40" in document
    assert re.search(r'<section id="samples" hidden', document) and re.search(r'<div id="problems" hidden', document)
