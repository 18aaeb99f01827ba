"""docs/add-an-algorithm.md says what is in the repository, and what it asks the reader to run works."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_pg import config

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/add-an-algorithm.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", PAGE, flags=re.DOTALL)
CODE = [text for language, text in BLOCKS if language == "python"]
RLOO = (ROOT / "rlhf_pg/algorithms/rloo.py").read_text()


def test_the_page_shows_the_whole_file_and_its_length():
    assert "".join(CODE[:-1]).split() == RLOO.split()
    assert all(text.strip() in RLOO for text in CODE[:-1])
    assert f"of {len(RLOO.splitlines())} lines" in PAGE


def test_its_files_and_fields_exist():
    for path in re.findall(r"`((?:tests|rlhf_pg)/[\w/]+(?:\.py)?)`", PAGE):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize(("compare", "passes"), [("leave_one_out", True), ("group_advantage", False)])
def test_its_test_passes_for_the_copy_and_fails_for_the_groups_mean(tmp_path, compare, passes):
    with_row = "F.credit.group_advantage(row_reward, batch.group, scale=False)"
    assert with_row in PAGE
    without_row = "F.credit.leave_one_out(row_reward, batch.group, singleton=0.0)"
    assert without_row in RLOO
    (tmp_path / "my_rloo.py").write_text(RLOO if passes else RLOO.replace(without_row, with_row))
    (tmp_path / "test_my_rloo.py").write_text(CODE[-1])
    environment = dict(os.environ, PYTHONPATH=f"{ROOT}{os.pathsep}{tmp_path}")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_my_rloo.py"]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ("2 passed" if passes else "2 failed") in run.stdout, run.stdout + run.stderr


def test_its_recipe_is_found_and_its_refusal_is_as_printed(tmp_path, monkeypatch):
    (tmp_path / "my_rloo.py").write_text(RLOO)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(ROOT)
    overrides = ["algorithm.name=my_rloo:algorithm", f"run.dir={tmp_path / 'run'}"]
    assert config.load("recipes/toy_rloo.yaml", [*overrides, "run.steps=3"]).algorithm.options.denominator == "constant"
    with pytest.raises(config.RecipeError) as error:
        config.load("recipes/toy_rloo.yaml", [*overrides, "algorithm.options.clip_low=0.2"])
    assert [text for language, text in BLOCKS if language == ""] == [f"{error.value}\n"]
