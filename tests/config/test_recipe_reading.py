"""Files, bases and overrides: what is read, and how a broken one is refused."""

from pathlib import Path

import pytest
from recipe_files import MINIMAL, problem, problems, write

from rlhf_pg import config
from rlhf_pg.config import RecipeError


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_missing_file():
    with pytest.raises(RecipeError, match=r"nowhere\.yaml: 1 problem\n  no such recipe file"):
        config.load("nowhere.yaml")


def test_a_folder_is_not_a_recipe():
    Path("folder").mkdir()
    with pytest.raises(RecipeError, match=r"cannot be read: .*directory"):
        config.load("folder")


def test_empty_file():
    assert problem(text="# nothing\n") == "the file is empty"


def test_a_list_is_not_a_recipe():
    assert problem(text="- 1\n") == "a recipe is a mapping of sections, this file holds a list"


def test_broken_yaml_gives_line_and_column():
    assert problem(text="run:\n  dir: [1\nmodel: x\n").startswith("line 3, column 6: ")


def test_duplicate_key_gives_both_lines():
    assert problem(text="run: {dir: x}\nkl: {}\nrun: {dir: y}\n") == (
        "line 3, column 1: key 'run' is given twice, first on line 1"
    )
    assert problem(text="run:\n  dir: x\n  seed: 1\n  dir: y\n") == (
        "line 4, column 3: key 'dir' is given twice, first on line 2"
    )


def test_a_key_that_is_not_text():
    assert problem(text="1: x\n") == "line 1, column 1: key '1' is not text"


def test_python_objects_in_yaml_are_refused():
    assert "could not determine a constructor" in problem(text="run: !!python/object/apply:os.getcwd []\n")


def test_bases_in_a_circle():
    write("base: b.yaml\n", "a.yaml")
    write("base: a.yaml\n", "b.yaml")
    with pytest.raises(RecipeError, match=r"build on each other in a circle: a\.yaml -> b\.yaml -> a\.yaml"):
        config.load("a.yaml")


def test_missing_base_names_the_path_it_looked_at():
    write("base: none.yaml\n", "deep/recipe.yaml")
    with pytest.raises(RecipeError, match=r"base: no file deep/none\.yaml"):
        config.load("deep/recipe.yaml")


def test_base_must_be_one_path():
    assert problem(text="base: [a, b]\n") == "base: must be the path of one recipe, is ['a', 'b']"


def test_override_without_a_value():
    assert problem("run.seed") == "run.seed: an override is section.key=value"


def test_override_that_is_not_yaml():
    assert "the value is not YAML" in problem("data.train.template=[")


def test_override_into_a_number():
    assert problem("kl.x.y=1", text=MINIMAL + "kl: {x: 3}") == "kl.x.y=1: kl.x is 3, which has no keys"


@pytest.mark.parametrize("index", ["1", "x", "-1"])
def test_override_of_a_list_item_that_is_not_there(index):
    expected = f"rewards.{index}.fn=a: rewards is a list of 1: use an index from 0 to 0, not {index!r}"
    assert problem(f"rewards.{index}.fn=a") == expected


def test_every_bad_override_is_listed_at_once():
    assert len(problems("run.seed", "x", "rewards.9.fn=a")) == 3
