"""The card of a trained model: metadata that the Hub's own reader takes, the run's figures, nothing guessed."""

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from rlhf_pg.report import model_card
from rlhf_pg.report.run_record import read
from rlhf_pg.types import Origin

CONFIG = """
run: {dir: runs/additions, seed: 0}
model: {path: smollm2, lora: null}
data:
  train: {task: gsm8k, path: null, dataset: null, template: auto}
  eval: {task: gsm8k}
rollout: {prompts_per_step: 4, samples_per_prompt: 8}
rewards: [{fn: gsm8k}]
algorithm: {name: grpo}
eval: {samples: 8, temperature: 1.0, greedy: true}
"""
LAUNCH = {
    "started": "2026-01-02T03:04:05+00:00",
    "command": "rlhf-pg train r.yaml",
    "git": {"commit": "abc123", "dirty": True},
    "seed": 0,
    "device": "NVIDIA H100",
    "dtype": "bfloat16",
    "layout": "replicas",
    "processes": 8,
    "versions": {"torch": "2.13.0"},
}
SUMMARY = {
    "algorithm": "grpo",
    "before": {"pass@1": 0.125, "pass@1_low": 0.0625, "pass@1_high": 0.25, "greedy": 0.5},
    "after": {"pass@1": 0.75, "pass@1_low": 0.625, "pass@1_high": 0.875},
    "samples": 64,
    "wall_s": 90.0,
}
HUB = Origin(hub="some/base", licence="mit", source="its README.md")


def run(folder: Path, config: str = CONFIG, summary=SUMMARY, launch=LAUNCH, rows=2):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(config)
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "run.json").write_text(json.dumps({"launches": [launch] if launch else []}))
    lines = [{"step": n + 1, "reward/mean": n / 10, "loss": 1.0} for n in range(rows)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read(folder)


def card(record, origin=HUB, **arguments) -> ModelCard:
    return ModelCard(model_card.files(record, origin, **arguments)["README.md"].decode())


def tables(text: str) -> list[list[list[str]]]:
    """The cells of each table, as a reader of GitHub's Markdown sees them."""
    found, row = [], []
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            row = []
            found[-1].append(row)
        elif token.type == "inline" and token.level > 3:
            row.append("".join(child.content for child in token.children or []))
    return found


def test_the_metadata_is_what_the_hub_reads(tmp_path):
    data = card(run(tmp_path / "r"), datasets=["openai/gsm8k"]).data.to_dict()
    assert data == {
        "base_model": "some/base",
        "base_model_relation": "finetune",
        "datasets": ["openai/gsm8k"],
        "library_name": "transformers",
        "license": "mit",
        "pipeline_tag": "text-generation",
        "tags": ["rlhf_pg", "grpo", "reinforcement-learning"],
    }
    data = card(run(tmp_path / "r"), adapter=True).data.to_dict()
    assert (data["library_name"], data["base_model_relation"]) == ("peft", "adapter")


def test_figures_stand_with_their_intervals_and_what_was_not_measured_is_said(tmp_path):
    figures, facts = tables(card(run(tmp_path / "r")).text)
    assert figures == [
        ["held-out problems solved", "before", "after"],
        ["pass@1", "0.12 [0.06, 0.25]", "0.75 [0.62, 0.88]"],
        ["greedy", "0.50", "not measured"],
    ]
    named = {row[0]: row[1] for row in facts}
    assert named["steps"] == "2 steps of 4 prompts x 8 samples, 64 samples in all"
    assert named["hardware"] == "NVIDIA H100 x 8"
    assert named["commit"] == "abc123, changed since"
    assert named["command"] == "rlhf-pg train r.yaml"
    assert named["time"] == "1 min 30 s"


def test_an_unknown_licence_is_said_to_be_unknown(tmp_path):
    made = card(run(tmp_path / "r"), Origin())
    assert made.data.to_dict()["license"] == "unknown"
    assert "base_model" not in made.data.to_dict()
    assert "That of the base model is unknown" in made.text
    assert "That of the base model: mit, as its README.md says." in card(run(tmp_path / "r")).text


def test_a_licence_of_its_own_keeps_name_and_link(tmp_path):
    origin = Origin(
        hub="a/b", licence="other", licence_name="qwen", licence_link="https://x.org", source="its README.md"
    )
    made = card(run(tmp_path / "r"), origin)
    data = made.data.to_dict()
    assert (data["license"], data["license_name"], data["license_link"]) == ("other", "qwen", "https://x.org")
    assert "other (qwen), https://x.org" in made.text
    assert card(run(tmp_path / "r"), Origin(licence="mit, apache-2.0")).data.to_dict()["license"] == [
        "mit",
        "apache-2.0",
    ]


def test_weights_that_were_rounded_are_said(tmp_path):
    assert "hold them rounded to bfloat16" in card(run(tmp_path / "r"), dtype="bfloat16").text
    assert "rounded" not in card(run(tmp_path / "r"), dtype="float32").text


def test_the_picture_lies_beside_the_card_and_only_if_there_is_something_to_draw(tmp_path):
    files = model_card.files(run(tmp_path / "r"), HUB)
    assert files["curves.png"].startswith(b"\x89PNG")
    assert b"](curves.png)" in files["README.md"]
    files = model_card.files(run(tmp_path / "none", summary={}, rows=0), HUB)
    assert list(files) == ["README.md"] and b"curves.png" not in files["README.md"]


@pytest.mark.parametrize(
    "name", ["a b", "x|y", "`tick`", "<script>", "**bold**", "[a](b)", "line\nbreak", "---", "naïve ✓", "# h", "a_b_c"]
)
def test_odd_names_are_shown_as_they_are(tmp_path, name):
    config = CONFIG.replace("path: smollm2", f"path: {json.dumps(name)}").replace(
        "fn: gsm8k", f"fn: {json.dumps(name)}"
    )
    launch = LAUNCH | {"command": f"rlhf-pg train {name}", "device": name}
    shown = name.replace("\n", "⏎")
    text = card(run(tmp_path / name, config, launch=launch), Origin(name=name)).text
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    title = next(tokens[i + 1] for i, token in enumerate(tokens) if token.type == "heading_open")
    assert "".join(child.content for child in title.children or []) == shown
    assert not [child for token in tokens for child in token.children or [] if child.type == "html_inline"]
    facts = {row[0]: row[1] for row in tables(text)[1]}
    assert facts["hardware"] == f"{shown} x 8"
    assert facts["command"] == f"rlhf-pg train {shown}"
    assert facts["reward"] == shown


def test_a_recipe_with_a_fence_in_it_stays_inside_its_own(tmp_path):
    config = CONFIG + "data2: |\n  ```\n  # not a heading\n  ````\n"
    tokens = MarkdownIt("commonmark").parse(card(run(tmp_path / "r", config)).text)
    recipe = [token.content for token in tokens if token.type == "fence" and token.info == "yaml"]
    assert recipe == [config.strip() + "\n"] or recipe == [config.rstrip() + "\n"]
    assert not [
        t for i, t in enumerate(tokens) if t.type == "heading_open" and tokens[i + 1].content == "not a heading"
    ]


def test_the_home_directory_and_paths_of_this_machine_are_not_told(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    config = CONFIG.replace("fn: gsm8k", "fn: /home/somebody/mine.py:score").replace(
        "path: null", "path: [/home/somebody/data/a.jsonl, b.csv]"
    )
    launch = LAUNCH | {"command": "/home/somebody/bin/rlhf-pg train"}
    text = card(run(tmp_path / "r", config, launch=launch)).text
    assert "somebody" not in text
    assert "`mine.py:score`" in text and "`a.jsonl`, `b.csv`" in text


def test_a_run_of_which_little_is_recorded_has_a_card_too(tmp_path):
    text = card(run(tmp_path / "r", "", {}, None, rows=1), Origin()).text
    facts = {row[0]: row[1] for row in tables(text)[0]}
    assert facts["commit"] == "unknown" and facts["hardware"] == "unknown"
    assert "data that is not recorded" in text


def test_a_cold_start_says_what_it_was(tmp_path):
    config = "run: {dir: r}\nmodel: {path: a/b}\ndata: {train: {path: d.csv}}\nsft: {batch_size: 16, epochs: 1}\n"
    made = card(run(tmp_path / "r", config, {}))
    assert "supervised fine-tuning on worked solutions on `d.csv`" in made.text
    assert made.data.to_dict()["tags"] == ["rlhf_pg", "sft"]
    facts = {row[0]: row[1] for row in tables(made.text)[0]}
    assert facts["steps"] == "2 steps of 16 rows" and "reward" not in facts


def test_the_code_that_loads_is_python(tmp_path):
    for path in ("tiny", "smollm2", "x.gguf", "a/b", "it's"):
        for adapter in (False, True):
            record = run(tmp_path / "r", CONFIG.replace("path: smollm2", f"path: {json.dumps(path)}"))
            tokens = MarkdownIt("commonmark").parse(card(record, Origin(), adapter=adapter).text)
            (code,) = (token.content for token in tokens if token.type == "fence" and token.info == "python")
            compile(code, "card", "exec")
            assert ("PeftModel" in code) == adapter
