"""What ran is recorded before step 1: the command without its secrets, the commit, the layout, versions."""

import json
import re
import subprocess
import sys

import pytest
import torch
import transformers

from rlhf_pg.estimate import hardware
from rlhf_pg.training import launch_facts
from tests.training import small_run


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        (["/x/bin/rlhf-pg", "train", "a b.yaml", "run.seed=1"], "rlhf-pg train 'a b.yaml' run.seed=1"),
        (["/x/rlhf_pg/__main__.py", "sft", "r.yaml"], "python -m rlhf_pg sft r.yaml"),
        (["rlhf-pg", "rewards.judge.api_key=abc"], "rlhf-pg rewards.judge.api_key=***"),
        (["rlhf-pg", "log.token=abc", "x.hub-secret=1"], "rlhf-pg log.token=*** x.hub-secret=***"),
        (["rlhf-pg", "note=hf_abcdefghijklmnop"], "rlhf-pg 'note=***'"),
        (["rlhf-pg", "data.train.path=https://me:pw@host/f"], "rlhf-pg 'data.train.path=https://***@host/f'"),
        (["rlhf-pg", "rollout.max_new_tokens=8"], "rlhf-pg rollout.max_new_tokens=8"),  # no secret
        (["rlhf-pg", "update.tokens_per_microbatch=8"], "rlhf-pg update.tokens_per_microbatch=8"),
    ],
)
def test_the_command_is_as_typed_without_what_looks_like_a_secret(monkeypatch, typed, shown):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert launch_facts.command(typed).replace("'", "") == shown.replace("'", "")


def test_a_command_under_a_launcher_says_so(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert launch_facts.command(["/x/rlhf_pg/__main__.py", "train"]) == "accelerate launch ... -m rlhf_pg train"


def git(folder, *arguments):
    who = ["-c", "user.name=n", "-c", "user.email=e@x"]
    return subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True, text=True)


def test_the_commit_of_the_recipes_folder_is_named_and_whether_it_has_changes(tmp_path):
    recipe = tmp_path / "deep" / "r.yaml"
    recipe.parent.mkdir()
    recipe.write_text("a")
    assert launch_facts.git_state(recipe) is None  # no repository
    git(tmp_path, "init", "-q")
    assert launch_facts.git_state(recipe) is None  # no commit
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "one")
    head = git(tmp_path, "rev-parse", "HEAD").stdout.strip()
    assert launch_facts.git_state(recipe) == {"commit": head, "dirty": False}
    (tmp_path / "beside").write_text("not git's")
    assert launch_facts.git_state(recipe) == {"commit": head, "dirty": False}
    recipe.write_text("b")
    assert launch_facts.git_state(recipe) == {"commit": head, "dirty": True}
    git(tmp_path, "checkout", "-q", ".")
    other = recipe.with_name("new.yaml")
    other.write_text("not committed")
    assert launch_facts.git_state(other) == {"commit": head, "dirty": True}


def test_without_git_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert launch_facts.git_state(tmp_path / "r.yaml") is None


def test_a_run_records_each_launch_before_its_first_step_and_in_its_summary(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/bin/rlhf-pg", "train", "r.yaml"])
    small_run.run(tmp_path, run={"steps": 1, "seed": 5}, model={"path": "tiny", "lora": {"rank": 2}})
    (first,) = json.loads((tmp_path / "run.json").read_text())["launches"]
    expected = {"from_step": 0, "command": "rlhf-pg train r.yaml", "seed": 5, "git": None, "dtype": "float32"}
    expected |= {"layout": "one process", "processes": 1, "engine": "native", "threads": torch.get_num_threads()}
    assert first.items() >= expected.items()
    assert first["versions"]["torch"] == torch.__version__
    assert first["versions"]["transformers"] == transformers.__version__
    assert "peft" in first["versions"] and "vllm" not in first["versions"]
    lora = {"path": "tiny", "lora": {"rank": 2}}
    small_run.run(tmp_path, run={"steps": 2, "seed": 5, "resume": "must"}, model=lora)
    launches = json.loads((tmp_path / "summary.json").read_text())["launches"]
    assert [launch["from_step"] for launch in launches] == [0, 1] and launches[0] == first
    assert json.loads((tmp_path / "run.json").read_text())["launches"] == launches


def test_a_run_opens_with_six_lines(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["/bin/rlhf-pg", "train", "r.yaml"])
    small_run.run(tmp_path, run={"steps": 1}, log={"live": "auto"})
    said = capsys.readouterr().out.split("\ndata.train")[0].splitlines()
    assert len(said) == 6
    assert said[0].startswith("grpo on tiny, ") and "parameters, all trained" in said[0]
    assert said[1].startswith("one process on ") and said[1].endswith("; float32; engine native; seed 0")
    assert said[2].startswith("rlhf_pg ") and "torch " in said[2]
    assert said[3].startswith("1 step of ") and "samples, at most " in said[3] and "optimizer step" in said[3]
    assert re.match(r"expected: [\d.]+ GiB at the most, in its \w+; the time after the first step$", said[4])
    assert said[5] == f"folder: {tmp_path}"


def test_time_is_expected_where_the_cards_rates_are_known(monkeypatch):
    class Card:
        name, total_memory = "NVIDIA A100-SXM4-40GB", 42 * 10**9

    monkeypatch.setattr(hardware.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(hardware.torch.cuda, "get_device_properties", lambda index: Card)
    device = hardware.this_card("bfloat16")
    assert device and device.name == "A100-40" and device.flops == 312e12 and device.memory == 42 * 10**9
    Card.name = "Some other card"
    assert hardware.this_card("bfloat16") is None
