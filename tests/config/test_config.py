"""What a recipe becomes when it loads, and back when it is dumped."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from recipe_files import HELD_OUT, MINIMAL, load, resolve, write

from rlhf_pg import config
from rlhf_pg.config import SftRecipe


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_minimal_recipe_has_the_documented_defaults():
    recipe = load()
    assert (recipe.rollout.prompts_per_step, recipe.kl.coefficient, recipe.eval.k) == (32, 0.04, [1, 8])
    assert recipe.run.dir == Path("runs/x")


@pytest.mark.parametrize(
    ("text", "value"), [("1e-4", 1e-4), ("2E-5", 2e-5), ("1.e-3", 1e-3), (".5", 0.5), ("3", 3.0), ("1_0.5", 10.5)]
)
def test_numbers_are_read_as_people_write_them(text, value):
    assert load(f"optimizer.lr={text}").optimizer.lr == value
    assert load(text=MINIMAL + f"optimizer: {{lr: {text}}}").optimizer.lr == value


def test_a_leading_zero_is_not_octal_and_off_is_not_false():
    recipe = load("run.steps=010", "log.live=off")
    assert (recipe.run.steps, recipe.log.live) == (10, "off")


def test_override_reaches_into_a_list():
    recipe = load("rewards.0.weight=2")
    assert [(r.fn, r.weight) for r in recipe.rewards] == [("gsm8k", 2.0)]


def test_override_value_is_yaml_and_replaces_the_whole_value():
    recipe = load("rewards=[{fn: gsm8k, weight: 3}]", "algorithm.options={clip_high: 0.28}")
    assert recipe.rewards[0].weight == 3
    assert recipe.algorithm.options["clip_high"] == 0.28


def test_override_value_may_hold_an_equals_sign():
    assert load('data.train.template="x={prompt}"').data.train.template == "x={prompt}"


def test_later_override_wins():
    assert load("run.seed=1", "run.seed=2").run.seed == 2


def test_null_takes_a_key_back_to_its_default():
    recipe = load("run.seed=null", "log=null", text=MINIMAL.replace("dir: runs/x", "dir: runs/x, seed: 7"))
    assert recipe.run.seed == 0
    assert recipe.log == config.Log()


def test_an_empty_section_is_its_defaults():
    assert load(text=MINIMAL + "kl:\n").kl == config.KL()


def test_base_maps_merge_deeply_and_lists_replace():
    write(MINIMAL + "optimizer: {lr: 1e-5, betas: [0.8, 0.9]}\n", "bases/base.yaml")
    write("base: base.yaml\noptimizer: {betas: [0.7, 0.8]}\nrewards: [{fn: gsm8k, weight: 5}]\n", "bases/middle.yaml")
    recipe = config.load(write("base: bases/middle.yaml\nrun: {seed: 4}\n"))
    assert (recipe.optimizer.lr, recipe.optimizer.betas) == (1e-5, (0.7, 0.8))
    assert [r.weight for r in recipe.rewards] == [5.0]
    assert (recipe.run.seed, recipe.run.dir) == (4, Path("runs/x"))


def test_data_paths_are_relative_to_the_current_directory_not_the_recipe():
    write("{}\n", "rows.jsonl")
    recipe = config.load(write(MINIMAL.replace("task: arithmetic", "path: rows.jsonl"), "deep/recipe.yaml"))
    assert recipe.data.train.path == Path("rows.jsonl")


def test_home_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", str(Path.cwd()))
    assert load("run.dir=~/runs/y").run.dir == Path.cwd() / "runs/y"


def test_options_of_the_algorithm_are_written_out():
    assert load("algorithm.options.clip_high=0.28").algorithm.options == {
        "denominator": "sequence",
        "standardise": False,
        "scale_by_std": True,
        "std_eps": 1e-4,
        "clip_low": 0.2,
        "clip_high": 0.28,
        "surrogate": "clip",
    }


def test_algorithm_may_come_from_a_module(monkeypatch):
    write("from rlhf_pg.algorithms.base import Algorithm\nalgorithm = Algorithm('mine', None, None)\n", "mine_file.py")
    monkeypatch.syspath_prepend(Path.cwd())
    options = load("algorithm.name=mine_file:algorithm").algorithm.options
    assert options == {"denominator": "token", "standardise": False}


def test_sft_has_its_own_learning_rate_even_with_an_optimizer_section():
    text = "run: {dir: r}\nmodel: {path: tiny}\ndata: {train: {task: arithmetic}}\noptimizer: {warmup_steps: 2}\n"
    assert config.load(write(text), (), SftRecipe).optimizer.lr == 1e-5


def test_hub_names_are_left_alone():
    assert load("model.path=Qwen/Qwen2.5-0.5B").model.path == "Qwen/Qwen2.5-0.5B"
    assert load("model.path=gpt2").model.path == "gpt2"


def test_a_row_format_with_a_home_on_the_hub_needs_no_path():
    assert load("data.train.task=gsm8k").data.train.task == "gsm8k"


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["kl.coefficient=0"],
        [*HELD_OUT, "eval.k=[1]", "eval.samples=2", "checkpoint.every=5", "checkpoint.keep=1"],
        ['log.project="1e5"', "log.trackers=[wandb, mlflow]", "log.entity=me", "log.tags=[a]", "log.names=trl"],
        ["model.lora.rank=4", "optimizer.lr=3e-4", 'data.train.template="yes: {prompt}\\n# no"'],
        ["data.train.options={digits: 2}"],
    ],
)
def test_a_dumped_recipe_loads_back_equal(overrides):
    recipe = resolve(*overrides)
    assert config.load(write(config.dump(recipe), "dumped.yaml")) == recipe


def test_a_dumped_sft_recipe_loads_back_equal():
    text = "run: {dir: r}\nmodel: {path: tiny}\ndata: {train: {task: arithmetic}}\nsft: {epochs: 3}\n"
    recipe = config.load(write(text), (), SftRecipe)
    assert config.load(write(config.dump(recipe), "dumped.yaml"), (), SftRecipe) == recipe


def test_a_dump_is_plain_yaml_that_any_reader_reads_the_same():
    dumped = yaml.safe_load(config.dump(resolve("log.live=off", "log.trackers=[wandb]", "log.project='1e5'")))
    assert (dumped["log"]["live"], dumped["log"]["project"]) == ("off", "1e5")
    assert dumped["optimizer"]["lr"] == 1e-6
    assert "estimator" not in yaml.safe_load(config.dump(resolve("kl.coefficient=0")))["kl"]


def test_loading_imports_no_torch_and_takes_under_two_seconds():
    path = write(MINIMAL)
    code = f"import sys; from rlhf_pg import config; config.load({str(path)!r}); assert 'torch' not in sys.modules"
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", code], check=True)
    assert time.monotonic() - started < 2 * 4  # the limit is 2 s; 4 times that on a busy machine


@pytest.mark.parametrize("overrides", [["rewards=gsm8k"], ["rewards=[gsm8k]"], ["rewards.0=gsm8k"]])
def test_a_reward_may_be_only_its_name(overrides):
    given = [(r.fn, r.weight) for r in load(*overrides, text=MINIMAL.replace("{fn: gsm8k}", "{fn: length}")).rewards]
    assert given == [("gsm8k", 1.0)]


@pytest.mark.parametrize("text", ["gsm8k", "[gsm8k]", "[gsm8k, {fn: format_r1, weight: 0.5}]"])
def test_names_and_sections_mix_in_a_file_and_overrides_reach_into_them(text):
    recipe = load("rewards.0.weight=3", text=MINIMAL.replace("[{fn: gsm8k}]", text))
    assert [(r.fn, r.weight) for r in recipe.rewards] == [("gsm8k", 3.0), ("format_r1", 0.5)][: len(recipe.rewards)]


def test_a_reward_file_that_is_only_named_is_looked_for_beside_the_recipe():
    write("def mine(completion): return 1.0\n", "project/mine.py")
    recipe = write(MINIMAL.replace("[{fn: gsm8k}]", "[mine.py:mine]"), "project/recipe.yaml")
    assert config.load(recipe).rewards[0].fn == "project/mine.py:mine"


def test_args_of_a_reward_are_written_down_and_read_back():
    resolved = resolve("rewards=[{fn: length, args: {length_budget: 50}}]")
    write(config.dump(resolved), "written.yaml")
    assert config.load("written.yaml").rewards[0].args == {"length_budget": 50}
