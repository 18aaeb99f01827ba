"""Files, bases and overrides: what is read, and how a broken one is refused."""

from pathlib import Path

import pytest
from recipe_files import MINIMAL, load, problem, problems, resolve, write

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
    assert "the value is not YAML" in problem("run.seed=[")


def test_override_into_a_number():
    assert problem("kl.x.y=1", text=MINIMAL + "kl: {x: 3}") == "kl.x.y=1: kl.x is 3, which has no keys"


@pytest.mark.parametrize("index", ["1", "x", "-1"])
def test_override_of_a_list_item_that_is_not_there(index):
    expected = f"rewards.{index}.fn=a: rewards is a list of 1: use an index from 0 to 0, not {index!r}"
    assert problem(f"rewards.{index}.fn=a") == expected


def test_every_bad_override_is_listed_at_once():
    assert len(problems("run.seed", "x", "rewards.9.fn=a")) == 3


@pytest.mark.parametrize(
    "text",
    [
        "line1\nline2 {prompt}",
        "{prompt}\n",
        "\n\n  {prompt}\n\tthink:\r\n",
        " {prompt} ",
        "{prompt} # step by step",
        "Q: {prompt}\nA:",
        "[{prompt}]",
        "{prompt}",
        "{q}: {prompt}, {x: [",
        "- {prompt}",
        "@{prompt}`",
        "%{prompt}",
        "!{prompt} &a *a",
        "\\{prompt}\\n \\boxed{}",
        '"{prompt}" is the question, "x" the answer',
        "'{prompt}' isn't easy",
        "| {prompt}",
        "a=b {prompt}",
        "\x07\x85\u2028{prompt} \U0001f600",
    ],
)
def test_text_on_the_command_line_comes_through_unchanged_and_so_does_its_dump(text):
    recipe = resolve(f"data.train.template={text}")
    assert recipe.data.train.template == text
    assert config.load(write(config.dump(recipe), "dumped.yaml")).data.train.template == text


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("log.project", "on", "on"),
        ("log.project", "run #3", "run #3"),
        ("log.project", "2024-01-01", "2024-01-01"),
        ("log.project", "'1e5'", "1e5"),  # quotes are YAML's, as in a file
        ("log.project", "'it''s\none'", "it's\none"),
        ("log.project", '"tab\\tnewline\\n\nquote\\""', 'tab\tnewline\n\nquote"'),
        ("log.project", "|\n  one\n  two\n", "one\ntwo\n"),
        ("log.project", '"broken \\q escape"', '"broken \\q escape"'),
        ("log.project", "null", "rlhf_pg"),  # the default
        ("log.project", "", "rlhf_pg"),
    ],
)
def test_a_text_key_takes_what_is_typed_unless_it_is_quoted_or_null(key, value, expected):
    written = load(f"{key}={value}", "log.trackers=[wandb]").log.project
    assert written == expected


def test_a_key_that_takes_text_or_a_list_takes_either():
    lora = load("model.lora.targets=[q_proj, v_proj]").model.lora
    assert lora is not None and lora.targets == ["q_proj", "v_proj"]
    lora = load("model.lora.targets=.*(q|v)_proj # both").model.lora
    assert lora is not None and lora.targets == ".*(q|v)_proj # both"


def test_options_are_yaml_whose_text_keeps_its_newlines():
    given = ["rollout.engine=mine:engine", "rollout.options.note=a: b", "rollout.options.text=one\n two # three\t"]
    options = load(*given, "rollout.options.number=1e-4", "rollout.options.flag=false").rollout.options
    assert options == {"note": {"a": "b"}, "text": "one\n two # three\t", "number": 1e-4, "flag": False}


def test_an_unquoted_pattern_that_yaml_takes_for_an_alias_is_said_to_need_quotes():
    with pytest.raises(RecipeError, match=r"line 1, column 22: .*text that begins with \* needs quotes"):
        config.load(write("data: {train: {path: *x}}"))
