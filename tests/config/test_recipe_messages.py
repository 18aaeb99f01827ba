"""Wrong keys and values: the words they are refused with."""

import runpy
from pathlib import Path

import pytest
from recipe_files import load, problem, problems

from rlhf_pg import config
from rlhf_pg.config import RecipeError, messages, reading
from rlhf_pg.config.inheritance import INHERITING

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_every_problem_is_listed_on_its_own_line():
    with pytest.raises(RecipeError) as caught:
        load("optimizer.lrr=3", "kl.placement=los", "run.steps=x")
    assert str(caught.value).splitlines() == [
        "recipe.yaml: 3 problems",
        "  run.steps: must be a whole number, is 'x'",
        "  kl.placement: must be 'loss' or 'reward', is 'los'; did you mean 'loss'?",
        "  optimizer.lrr: unknown key; did you mean optimizer.lr?",
    ]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimiser.lr=1", "optimiser: unknown key; did you mean optimizer?"),
        ("lr=1", "lr: unknown key; did you mean critic.optimizer.lr or optimizer.lr?"),
        ("temperature=1", "temperature: unknown key; did you mean rollout.temperature or eval.temperature?"),
        ("model.lora.rnk=1", "model.lora.rnk: unknown key; did you mean model.lora.rank?"),
        ("rewards.0.weights=1", "rewards.0.weights: unknown key; did you mean rewards.0.weight?"),
        ("kl.foo=null", "kl.foo: unknown key; the keys here are coefficient, placement, estimator, target, horizon"),
    ],
)
def test_unknown_key_names_the_nearest(override, expected):
    assert problem(override) == expected


def test_required_keys():
    assert problems(text="kl: {}\n") == [f"{k}: required, but not given" for k in ("run", "model", "data", "rewards")]
    assert problem("run.dir=null") == "run.dir: required, but not given"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("run.steps=1.5", "run.steps: must be a whole number, is 1.5"),
        ("run.steps=true", "run.steps: must be a number, is True"),
        ("eval.max_new_tokens=true", "eval.max_new_tokens: must be a number, is True"),
        ("run.steps=-1", "run.steps: must be at least 0, is -1"),
        ("optimizer.lr=0", "optimizer.lr: must be greater than 0, is 0"),
        ("optimizer.lr=.nan", "optimizer.lr: must be a finite number, is nan"),
        ("optimizer.lr=.inf", "optimizer.lr: must be a finite number, is inf"),
        ("rewards.0.weight=-.inf", "rewards.0.weight: must be a finite number, is -inf"),
        ("optimizer.lr=high", "optimizer.lr: must be a number, is 'high'"),
        ("optimizer.betas=[0.9]", "optimizer.betas.1: required, but not given"),
        ("optimizer.betas=[0.9, 1]", "optimizer.betas.1: must be less than 1, is 1"),
        ("optimizer.betas=[0.9, 0.9, 0.9]", "optimizer.betas: must have at most 2 items, has 3"),
        ("model.lora.targets=3", "model.lora.targets: must be text or a list of text"),
        ("run.preflight=perhaps", "run.preflight: must be true or false, is 'perhaps'"),
        ("log.project=1", "log.project: must be text (in quotes), is 1"),
        ("run.dir=1", "run.dir: must be a path, is 1"),
        ("model=tiny", "model: must be a section of keys, is 'tiny'"),
        ("data.train.options=3", "data.train.options: must be a section of keys, is 3"),
        ("rewards=3", "rewards: must be a list, is 3"),
        ("rewards=[3]", "rewards.0: must be a section of keys, is 3"),
        ("rewards=[]", "rewards: must have at least 1 item, has 0"),
        ("eval.k=[0]", "eval.k.0: must be at least 1, is 0"),
        (
            "log.trackers=[wandbb]",
            "log.trackers.0: must be 'tensorboard', 'wandb', 'trackio' or 'mlflow', is 'wandbb'; did you mean 'wandb'?",
        ),
    ],
)
def test_wrong_value_names_key_and_what_fits(override, expected):
    assert problem(override) == expected


def test_every_key_has_a_description():
    for schema in (config.Recipe, config.SftRecipe):
        assert [key.name for key in messages.keys(schema) if not key.field.description] == []


def test_every_key_is_in_the_documentation_with_its_default():
    page = (ROOT / "docs" / "recipes.md").read_text()
    script = runpy.run_path(str(ROOT / "scripts" / "recipe_table.py"))
    assert script["filled"](page) == page, "run scripts/recipe_table.py"
    lines = page.splitlines()
    for key in messages.keys(config.Recipe):
        name = next((section for section in INHERITING if key.name.startswith(section + ".")), key.name)
        assert any(line.startswith(f"| `{name}` |") for line in lines), key.name
    assert "| `kl.coefficient` | a number | `0.04` | weight of the KL to the reference; 0 = none |" in lines


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_recipes_are_right_but_for_files_not_made_yet(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    schema = config.SftRecipe if "sft" in reading.read(path) else config.Recipe
    try:
        config.load(path, (), schema)
    except config.RecipeError as error:
        assert [p for p in error.problems if ": no folder " not in p and ": no file " not in p] == []
