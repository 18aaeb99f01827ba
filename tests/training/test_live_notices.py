"""A run without signal says so while it goes on: once, also after a resume, and where the live view is off."""

import json

import pytest

from tests.training import small_run


def warnings(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("warning: ")]


NEVER = [{"fn": f"{small_run.REWARDS}:never"}]


@pytest.mark.parametrize("live", ["auto", "off"])
def test_a_run_without_any_reward_says_so_after_its_second_step(tmp_path, capsys, live):
    small_run.run(tmp_path, rewards=NEVER, run={"steps": 4}, log={"live": live})
    captured = capsys.readouterr()
    shown, other = (captured.err, captured.out) if live == "off" else (captured.out, captured.err)
    none, cut = warnings(shown)
    assert none.startswith("warning: Every reward of steps 1 to 2 was 0: there was nothing to learn from.")
    assert "were cut off: raise rollout.max_new_tokens." in cut
    assert not warnings(other)
    report = (tmp_path / "report.html").read_text()
    assert "Every reward of late steps was 0: there was nothing to learn from." in report


def test_a_resumed_run_does_not_repeat_itself(tmp_path, capsys):
    small_run.run(tmp_path, rewards=NEVER, run={"steps": 3})
    assert len(warnings(capsys.readouterr().err)) == 2
    small_run.run(tmp_path, rewards=NEVER, run={"steps": 6, "resume": "must"})
    assert not warnings(capsys.readouterr().err)


def test_a_reward_that_fails_is_named_in_the_first_step_with_its_words(tmp_path, capsys):
    small_run.run(tmp_path, rewards=[{"fn": f"{small_run.REWARDS}:fails_on_odd_sums"}])
    first = warnings(capsys.readouterr().err)[0]
    failed = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])["outcome/error"]
    assert failed > 0
    assert first.startswith(f"warning: {failed:.0f} samples of step 1 ({failed / 16:.1%}): the reward function failed")
    assert "The first: fails_on_odd_sums, sample " in first and "ValueError: the sum of its characters is odd" in first


def test_a_run_that_learns_is_told_nothing(tmp_path, capsys):
    small_run.run(tmp_path, run={"steps": 12})
    assert not warnings(capsys.readouterr().err)
