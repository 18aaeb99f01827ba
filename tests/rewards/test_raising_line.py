"""A function that fails is shown with the line of its file that raised."""

import pytest

from rlhf_pg.rewards import plugin
from rlhf_pg.rewards.score import Scorer
from rlhf_pg.types import Sample

FILE = """import asyncio, json
import helper_beside

def divides(completion):
    if completion == "ok":
        return 1.0
    total = 0
    return 1 / total

def parses(completion):
    return json.loads(completion)["reward"]

def helped(completion):
    return helper_beside.half(completion)

async def awaits(completion):
    await asyncio.sleep(0)
    raise KeyError("gone")

def batch(completions):
    return [c.strip("x").upper().missing for c in completions]
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "helper_beside.py").write_text("def half(text):\n    return int(text) / 2\n")
    (tmp_path / "mine.py").write_text(FILE)
    return tmp_path / "mine.py"


@pytest.mark.parametrize(
    ("function", "shown"),
    [
        ("divides", "mine.py:8, `return 1 / total`: ZeroDivisionError: division by zero"),
        ("parses", 'mine.py:11, `return json.loads(completion)["reward"]`: JSONDecodeError: '),
        ("helped", "helper_beside.py:2, `return int(text) / 2`: ValueError: "),
        ("awaits", "mine.py:18, `raise KeyError(\"gone\")`: KeyError: 'gone'"),
        ("batch", 'mine.py:21, `return [c.strip("x").upper().missing for c in completions]`: AttributeError: '),
    ],
)
def test_the_innermost_line_of_the_authors_own_files_is_shown(file, function, shown):
    rewards = [plugin.resolve(f"{file}:{function}"), plugin.resolve("gsm8k")]
    with Scorer(rewards, workers=1) as scorer, pytest.raises(RuntimeError, match="every one of 1 samples") as caught:
        scorer.score([Sample("p", "bad", "stop", {"answer": "4"})])
    assert f"{function}, sample 0: {shown}" in str(caught.value)


def test_a_file_that_fails_on_import_shows_the_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "late.py").write_text("import math\nLIMIT = math.log(0)\ndef late(completion): return 1.0\n")
    with pytest.raises(ValueError, match=r"late\.py:2, `LIMIT = math\.log\(0\)`: ValueError: "):
        plugin.resolve("late.py")


def test_a_setup_that_fails_shows_the_line(file):
    with file.open("a") as more:
        more.write("\ndef prepared(completion): return 1.0\ndef load(): raise OSError('no judge here')\n")
        more.write("prepared.setup = load\n")
    with Scorer([plugin.resolve(f"{file}:prepared")], workers=1) as scorer, pytest.raises(RuntimeError) as caught:
        scorer.score([Sample("p", "x", "stop", {})])
    assert "mine.py:24, `def load(): raise OSError('no judge here')`: OSError: no judge here" in str(caught.value)
