"""Names of reward functions, and arguments checked before anything trains."""

import importlib.metadata
import sys

import pytest

from rlhf_pg.rewards import plugin


@pytest.fixture
def plugin_file(tmp_path, monkeypatch):
    (tmp_path / "mine_rewards.py").write_text(
        "NUMBER = 3\n"
        "def reward(completion): return 1.0\n"
        "def per_sample(completion, answer, level, style='x'): return 1.0\n"
        "def trl(prompts, completions, answer, **kwargs): return [1.0] * len(prompts)\n"
        "def mixed(completion, completions): return 1.0\n"
        "def positional(completion, /): return 1.0\n"
        "async def judge(completion): return 1.0\n"
        "def mine_rewards(completion): return 1.0\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / "mine_rewards.py"
    sys.modules.pop("mine_rewards", None)


@pytest.mark.parametrize("name", ["countdown", "format_r1", "gsm8k", "length", "math_answer", "overlong"])
def test_shipped_names_resolve_and_ask_only_for_what_there_is(name):
    reward = plugin.resolve(name)
    assert reward.name == name
    plugin.check(reward, {"numbers", "target"})


@pytest.mark.parametrize("spec", ["{file}:per_sample", "mine_rewards:per_sample", "mine_rewards.per_sample"])
def test_a_file_and_both_dotted_forms_find_the_same_function(plugin_file, spec):
    reward = plugin.resolve(spec.format(file=plugin_file), weight=0.5, timeout_s=3.0)
    assert (reward.name, reward.weight, reward.timeout_s, reward.batched) == ("per_sample", 0.5, 3.0, False)
    assert reward.arguments == ("completion", "answer", "level")
    assert reward.optional == ("style",)


def test_without_a_name_a_file_gives_the_function_of_its_name(plugin_file):
    assert plugin.resolve(str(plugin_file)).function == "mine_rewards"


def test_a_function_called_reward_goes_by_the_name_of_its_file(plugin_file):
    assert plugin.resolve(f"{plugin_file}:reward").name == "mine_rewards"


def test_entry_points_are_found(plugin_file, monkeypatch):
    entry = importlib.metadata.EntryPoint("judge", "mine_rewards:judge", plugin.ENTRY_POINTS)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [entry])
    reward = plugin.resolve("judge")
    assert (reward.module, reward.function, reward.is_async) == ("mine_rewards", "judge", True)


def test_plural_arguments_make_a_function_batched_as_in_trl(plugin_file):
    reward = plugin.resolve(f"{plugin_file}:trl")
    assert reward.batched
    assert reward.takes_rest
    plugin.check(reward, {"answer"})


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gsm8q", "did you mean 'gsm8k'"),
        ("{dir}/mine_reward.py:f", "did you mean 'mine_rewards.py'"),
        ("{file}:per_sampel", "did you mean 'per_sample'"),
        ("{file}:NUMBER", "is a int, not a function"),
        ("{file}:mixed", "mixes per-sample"),
        ("{file}:positional", "positional-only"),
        ("no_such_module:f", "cannot be loaded: ModuleNotFoundError"),
    ],
)
def test_what_cannot_be_found_is_named_with_the_nearest(plugin_file, spec, message):
    with pytest.raises(ValueError, match=message):
        plugin.resolve(spec.format(file=plugin_file, dir=plugin_file.parent))


def test_an_unknown_argument_is_named_with_those_there_are(plugin_file):
    reward = plugin.resolve(f"{plugin_file}:per_sample")
    plugin.check(reward, {"level"})
    with pytest.raises(ValueError, match=r"argument 'level'.*available: answer, completion.*did you mean 'levels'"):
        plugin.check(reward, {"levels"})


def test_a_file_may_import_its_neighbours(tmp_path):
    (tmp_path / "near_by.py").write_text("VALUE = 0.5\n")
    (tmp_path / "uses.py").write_text("from near_by import VALUE\ndef uses(completion): return VALUE\n")
    assert plugin.load(str(tmp_path / "uses.py"), "uses")("x") == 0.5


def test_a_broken_file_says_why(tmp_path):
    (tmp_path / "broken.py").write_text("def f(:\n")
    with pytest.raises(ValueError, match="SyntaxError"):
        plugin.resolve(f"{tmp_path / 'broken.py'}:f")
