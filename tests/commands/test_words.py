"""Words of a command line: any order, dashes before keys, other toolkits' names, completion, `env`."""

import importlib.metadata
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
from recipe_files import MINIMAL, write

from rlhf_pg import __version__, cli
from rlhf_pg.algorithms.base import resolve
from rlhf_pg.commands import completion
from rlhf_pg.config import Recipe, SftRecipe, foreign, messages
from rlhf_pg.names import shipped


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(MINIMAL, "recipe.yaml")


@pytest.mark.parametrize(
    "words",
    [
        ["recipe.yaml", "run.seed=3", "--after", "5", "optimizer.lr=1e-3"],
        ["--after", "5", "run.seed=3", "recipe.yaml", "optimizer.lr=1e-3"],
        ["run.seed=3", "--optimizer.lr=1e-3", "--after=5", "recipe.yaml"],
        ["recipe.yaml", "--run.seed", "3", "--optimizer.lr", "1e-3", "--after", "5"],
    ],
)
def test_overrides_and_options_come_in_any_order(words):
    parsed = cli.parser().parse_args(["variance", *words])
    assert (str(parsed.recipe), parsed.after) == ("recipe.yaml", 5)
    assert sorted(parsed.overrides) == ["optimizer.lr=1e-3", "run.seed=3"]


def test_of_two_values_for_a_key_the_last_holds(monkeypatch):
    seen = []
    module = types.ModuleType("rlhf_pg.commands.run_training")
    vars(module)["train"] = lambda recipe, source: seen.append(recipe.run.seed) or 0
    monkeypatch.setitem(sys.modules, "rlhf_pg.commands.run_training", module)
    assert cli.main(["train", "recipe.yaml", "run.seed=1", "--debug", "--run.seed=2"]) == 0
    assert cli.main(["train", "--run.seed=2", "recipe.yaml", "run.seed=1"]) == 0
    assert seen == [2, 1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--beta", "0.1"], "beta: unknown key; here it is kl.coefficient"),
        (["num_generations=4"], "num_generations: unknown key; here it is rollout.samples_per_prompt"),
        (["--learning-rate=1e-5"], "learning-rate: unknown key; here it is optimizer.lr"),
        (["optimizer.learning_rate=1"], "optimizer.learning_rate: unknown key; here it is optimizer.lr"),
        (["max_completion_length=9"], "here it is rollout.max_new_tokens"),
        (["per_device_train_batch_size=9"], "here it is rollout.prompts_per_step x rollout.samples_per_prompt"),
        (["algorithm.options.epsilon=1"], "here it is algorithm.options.clip_low and algorithm.options.clip_high"),
        (["actor_rollout_ref.rollout.n=8"], "actor_rollout_ref: unknown key; here it is rollout.samples_per_prompt"),
        (["--kl.coeff", "1"], "kl.coeff: unknown key; did you mean kl.coefficient?"),
    ],
)
def test_a_name_of_another_toolkit_is_answered_with_ours(words, said, capsys):
    assert cli.main(["train", "recipe.yaml", *words]) == 2
    assert said in capsys.readouterr().err


def test_every_key_that_a_foreign_name_is_answered_with_exists():
    known = {key.name for schema in (Recipe, SftRecipe) for key in messages.keys(schema)} | {"rewards"}
    for name in shipped("rlhf_pg.algorithms"):
        known |= {f"algorithm.options.{option}" for option in resolve(name).options.model_fields}
    for text in foreign.KEYS.values():
        named = re.findall(r"\b[a-z]\w*(?:\.\w+)+|^rewards$", text)
        assert named and set(named) <= known, text


def test_no_key_of_a_recipe_is_taken_for_a_foreign_name():
    top = {key.name.partition(".")[0] for key in messages.keys(Recipe)}
    assert not top & foreign.KEYS.keys()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["plan", "recipe.yaml", "--gpuu", "H100"], "unrecognized arguments: --gpuu; did you mean '--gpu'?"),
        (["train"], "the following arguments are required: RECIPE\n"),
    ],
)
def test_a_wrong_option_names_the_nearest_and_what_is_missing(words, said, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(words)
    assert left.value.code == 2 and said in capsys.readouterr().err


def completions(line: str) -> list[str]:
    """What a shell is told when Tab is pressed at the end of a line."""
    asked = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_COMP_WORDBREAKS": " \t\n"}
    asked |= {"COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9", "_ARGCOMPLETE_STDOUT_FILENAME": "said"}
    code = "import sys; sys.argv = ['rlhf-pg']; from rlhf_pg.cli import main; main()"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **asked}, timeout=60)
    return [word.strip() for word in Path("said").read_text().split("\n")]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("rlhf-pg vari", ["variance"]),
        ("rlhf-pg train quick", ["quickstart", "quickstart_sft"]),
        ("rlhf-pg train rec", ["recipe.yaml"]),
        ("rlhf-pg train quickstart optimizer.sch", ["optimizer.schedule="]),
        ("rlhf-pg rewards check gsm", ["gsm8k"]),
    ],
)
def test_a_shell_completes_commands_recipes_keys_and_rewards(line, words):
    assert sorted(completions(line)) == words


def test_values_of_a_key_with_few_values_are_completed():
    assert completion.overrides("kl.placement=") == ["kl.placement=loss", "kl.placement=reward"]
    assert completion.overrides("run.preflight=") == ["run.preflight=true", "run.preflight=false"]
    assert completion.overrides("optimizer.lr=") == []
    assert "sft.epochs=" in completion.overrides("sft", "sft")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_code_for_a_shell_is_printed(shell, capsys):
    assert cli.main(["completion", shell]) == 0
    assert "rlhf-pg" in capsys.readouterr().out


def test_env_names_versions_and_devices(capsys):
    assert cli.main(["env"]) == 0
    facts = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert facts["torch"] == importlib.metadata.version("torch")
    assert facts["rlhf_pg"].startswith(__version__) and {"python", "system", "cpu", "memory"} <= facts.keys()
