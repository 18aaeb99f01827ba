"""docs/metrics.md names what runs write: nothing is missing there, and nothing that it names is never written."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rlhf_pg.algorithms.base import names as algorithm_names
from rlhf_pg.models.load import load_tokenizer
from rlhf_pg.rollout import launch_local
from rlhf_pg.trackers.metric_names import TRL, of_trl, renamed
from rlhf_pg.training.metrics import Judged, rollout_metrics
from tests.thread_engine import spawn_thread
from tests.training import small_run

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
ROW = re.compile(r"^\| `([^`]+)` \|.*\|\s*(?:`([^`]+)`)?\s*\|$", re.MULTILINE)
PATTERNS = {"reward/NAME": r"reward/.+", "outcome/NAME": r"outcome/\w+"}
HELD_OUT = {"train": {"task": "arithmetic", "options": {"count": 24}}, "eval": {"options": {"count": 4}}}
OLD_POLICY = {"epochs": 2}
RUNS = {
    "grpo": {"kl": {"coefficient": 0.05, "target": 0.1}, "update": OLD_POLICY},
    "reinforce": {"kl": {"coefficient": 0.05, "placement": "reward", "estimator": "k1"}},
    "reinforce_baseline": {"kl": {"coefficient": 0.0}, "critic": {"backbone": "policy"}},
    "ppo": {"update": OLD_POLICY},
    "trpo": {"optimizer": None, "algorithm": {"name": "trpo", "options": {"cg_iterations": 2}}},
    "rloo": {},
}


def documented() -> dict[str, str]:
    """Return metric -> TRL's name, "" for none, of the rows of the page."""
    return {name: trl for name, trl in ROW.findall(PAGE.read_text()) if name != "metric"}


def row_of(metric: str) -> str | None:
    """Return the row of the page that a metric belongs to."""
    rows = documented()
    named = re.sub(r"pass@\d+", "pass@K", metric)
    if named in rows:
        return named
    return next((row for row, pattern in PATTERNS.items() if re.fullmatch(pattern, metric)), None)


def written(folder: Path, **changes) -> set[str]:
    raw = small_run.mapping(folder, run={"steps": 2}, **changes)
    raw = {name: section for name, section in raw.items() if section is not None}
    assert small_run.train(small_run.parsed(raw)) == 0
    return {name for line in (folder / "metrics.jsonl").read_text().splitlines() for name in json.loads(line)}


@pytest.fixture(scope="module")
def of_runs(tmp_path_factory) -> set[str]:
    """The names of all metrics of tiny runs: of every shipped algorithm, and with every optional measurement."""
    folder = tmp_path_factory.mktemp("runs")
    found = set()
    for name, changes in RUNS.items():
        found |= written(folder / name, **{"algorithm": {"name": name}, **changes})
    found |= written(folder / "eval", data=HELD_OUT, eval={"every": 1, "samples": 2, "k": [1, 2]})
    apart = {"cap": 1.01, "limit": 1e-9, "action": "mask"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch_local, "spawn", spawn_thread)
        found |= written(folder / "overlap", rollout={"overlap": True}, update={"mismatch": apart})
    return found


def test_every_shipped_algorithm_is_run():
    assert set(RUNS) == set(algorithm_names())


def test_no_metric_of_a_run_is_missing_in_the_page(of_runs):
    assert sorted(name for name in of_runs if row_of(name) is None) == []


def test_every_metric_in_the_page_is_written(of_runs):
    judged = [_sample(finish="stop", reward=1.0), _sample(finish="length", reward=0.0)]  # chance in a run
    rows = {row_of(name) for name in of_runs | rollout_metrics(judged).keys()}
    assert sorted(documented().keys() - rows) == []


def test_the_page_has_the_names_of_trl_that_trackers_get():
    rows = documented()
    assert {name: trl for name, trl in rows.items() if trl and name not in PATTERNS} == TRL
    assert rows["reward/NAME"] == of_trl("reward/NAME")
    assert {row for row in PATTERNS if not rows[row]} == {"outcome/NAME"}


def test_names_that_trl_has_are_translated_and_others_kept():
    metrics = {"reward/mean": 1.0, "reward/gsm8k": 0.5, "trust/kl": 0.1, "eval/pass@1": 0.2}
    assert renamed(metrics) == {
        "train/reward": 1.0,
        "train/rewards/gsm8k/mean": 0.5,
        "trust/kl": 0.1,
        "eval/pass@1": 0.2,
    }
    assert renamed(metrics, "").keys() == {"reward", "rewards/gsm8k/mean", "trust/kl", "eval/pass@1"}


def test_lengths_are_of_all_completions_and_of_those_that_ended():
    metrics = rollout_metrics(
        [_sample(length=3), _sample(length=5), _sample(length=8, finish="length"), _sample(length=8, finish="length")]
    )
    assert [metrics[f"completion/length_{of}"] for of in ("mean", "min", "max")] == [6, 3, 8]
    assert [metrics[f"completion/ended_length_{of}"] for of in ("mean", "min", "max")] == [4, 3, 5]
    assert "completion/ended_length_mean" not in rollout_metrics([_sample(finish="length")])


def test_tokens_in_all_are_those_of_prompts_and_completions_over_a_resume(tmp_path):
    for steps in (1, 3):
        small_run.run(tmp_path, run={"steps": steps, "resume": "auto"}, log={"live": "off", "samples": 16})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    total = 0
    for step, line in enumerate(lines, 1):
        rows = [json.loads(row) for row in (tmp_path / f"rollouts/step_{step:08d}.jsonl").read_text().splitlines()]
        lengths = [len(row["tokens"]) for row in rows]
        assert (len(rows), line["tokens/generated"]) == (16, sum(lengths))
        assert (line["completion/length_min"], line["completion/length_max"]) == (min(lengths), max(lengths))
        prompts = load_tokenizer("tiny")([row["prompt"] for row in rows], add_special_tokens=False)["input_ids"]
        assert line["tokens/prompts"] == sum(map(len, prompts))
        total += line["tokens/prompts"] + line["tokens/generated"]
        assert line["tokens/total"] == total
    assert len(lines) == 3


def test_a_prompt_counts_once_for_each_of_its_samples():
    metrics = rollout_metrics([_sample(prompt_length=7), _sample(prompt_length=7)])
    assert metrics["tokens/prompts"] == 14


def _sample(reward: float | None = 1.0, finish: str = "stop", length: int = 2, prompt_length: int = 4) -> Judged:
    return Judged("p", reward, {"fn": reward}, "scored", finish, length, prompt_length)
