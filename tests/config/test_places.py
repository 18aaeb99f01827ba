"""Where a recipe and the files it names are looked for."""

import os
from pathlib import Path

import pytest
from recipe_files import MINIMAL, write

from rlhf_pg import config
from rlhf_pg.config import places
from rlhf_pg.config.recipe import SftRecipe

REWARD = "def score(completion):\n    return 1.0\n"


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)


def reward_and_data(recipe):
    written = config.load(recipe).written
    return written.rewards[0].fn, str(written.data.train.path)


def recipe_in(folder: str | Path):
    text = MINIMAL.replace("{task: arithmetic}", "{path: rows.jsonl}").replace("fn: gsm8k", "fn: mine.py:score")
    return write(text, f"{folder}/recipe.yaml")


def test_files_are_looked_for_beside_the_recipe_then_in_the_current_folder():
    recipe = recipe_in("project")
    write(REWARD, "mine.py")
    write("{}\n", "rows.jsonl")
    assert reward_and_data(recipe) == ("mine.py:score", "rows.jsonl")
    write(REWARD, "project/mine.py")
    write("{}\n", "project/rows.jsonl")
    assert reward_and_data(recipe) == ("project/mine.py:score", "project/rows.jsonl")


def test_a_recipe_of_another_folder_finds_its_files_from_anywhere():
    outside = Path("..", "outside").resolve()
    recipe = recipe_in(outside)
    write(REWARD, str(outside / "mine.py"))
    write("{}\n", str(outside / "rows.jsonl"))
    expected = (f"{outside}/mine.py:score", f"{outside}/rows.jsonl")
    assert reward_and_data(recipe) == expected
    assert reward_and_data(os.path.relpath(recipe)) == expected


def test_each_base_has_files_of_its_own_beside_it():
    write(MINIMAL.replace("fn: gsm8k", "fn: mine.py:score"), "shared/base.yaml")
    write(REWARD, "shared/mine.py")
    write(REWARD, "project/mine.py")
    recipe = write("base: ../shared/base.yaml\n", "project/recipe.yaml")
    assert config.load(recipe).written.rewards[0].fn == "shared/mine.py:score"


def test_an_override_is_of_the_current_folder():
    recipe = recipe_in("project")
    write(REWARD, "project/mine.py")
    write("{}\n", "project/rows.jsonl")
    write(REWARD, "mine.py")
    assert config.load(recipe, ["rewards.0.fn=mine.py:score"]).written.rewards[0].fn == "mine.py:score"


def test_names_of_models_are_no_files():
    Path("project", "tiny").mkdir(parents=True)
    Path("project", "my_model").mkdir()
    assert config.load(write(MINIMAL, "project/a.yaml")).model.path == "tiny"
    mine = MINIMAL.replace("path: tiny", "path: my_model")
    assert config.load(write(mine, "project/b.yaml")).model.path == "project/my_model"


def test_a_run_loads_back_from_its_own_record_in_another_folder(tmp_path, monkeypatch):
    recipe = recipe_in(tmp_path / "outside")
    write(REWARD, str(tmp_path / "outside" / "mine.py"))
    write("{}\n", str(tmp_path / "outside" / "rows.jsonl"))
    resolved = config.load(recipe)
    record = write(config.dump(resolved), "runs/x/config.yaml")
    assert config.load(record).written == resolved.written


def test_an_absolute_path_stays_as_it_is():
    model = Path("project", "my_model").absolute()
    model.mkdir(parents=True)
    recipe = write(MINIMAL.replace("path: tiny", f"path: {model}"), "project/recipe.yaml")
    assert config.load(recipe).model.path == str(model)


def test_the_record_of_a_run_is_of_the_folder_it_was_started_in():
    mine = MINIMAL.replace("path: tiny", "path: my_model")
    Path("runs", "x", "my_model").mkdir(parents=True)
    record = write(mine, "runs/x/config.yaml")
    assert config.load(record).model.path == "runs/x/my_model"
    Path("runs", "x", "checkpoints").mkdir()
    assert config.load(record).model.path == "my_model"


def test_shipped_recipes_go_by_name():
    assert places.find("toy_grpo") == places.SHIPPED / "toy_grpo.yaml"
    assert config.load("toy_grpo").written.rewards[0].fn == f"{places.SHIPPED}/toy_reward.py:sevens"
    assert config.load("quickstart_sft", [], SftRecipe).model.path == "tiny"
    write(MINIMAL, "toy_grpo")
    assert places.find("toy_grpo") == Path("toy_grpo")  # a file here comes first


def test_a_base_that_is_not_here_may_be_a_shipped_one():
    recipe = write("base: toy_grpo.yaml\nrun: {dir: runs/mine}\n", "mine.yaml")
    assert config.load(recipe).run.dir == Path("runs/mine")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("toy_grp", "did you mean 'toy_grpo'?"),
        ("toy_grpo.yaml", "'toy_grpo', without folder and ending, is shipped"),
        ("recipes/toy_grpo.yaml", "'toy_grpo', without folder and ending, is shipped"),
    ],
)
def test_a_recipe_that_is_nowhere(name, said):
    with pytest.raises(config.RecipeError, match="no such recipe file") as caught:
        config.load(name)
    assert said in str(caught.value)


def test_a_missing_cold_start_names_the_command_that_makes_it():
    with pytest.raises(config.RecipeError, match=r"runs/quickstart_sft/model; rlhf-pg sft quickstart_sft makes it"):
        config.load("quickstart")
