"""How a launch is read from the environment, and what it makes impossible."""

import json

import pytest
from recipe_files import MINIMAL, write

from rlhf_pg import config
from rlhf_pg.config import Launch, reading

DEEPSPEED = {"WORLD_SIZE": "2", "ACCELERATE_USE_DEEPSPEED": "true"}


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_launch_is_what_accelerate_says_of_it(tmp_path):
    assert Launch.from_environment({}) == Launch(1, 0)
    assert Launch.from_environment({"WORLD_SIZE": "4"}) == Launch(4, 0)
    assert Launch.from_environment(DEEPSPEED) == Launch(2, 2)  # DeepSpeed's default stage
    assert Launch.from_environment(DEEPSPEED | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}) == Launch(2, 3)
    file = tmp_path / "ds.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 1}}))
    assert Launch.from_environment(DEEPSPEED | {"ACCELERATE_DEEPSPEED_CONFIG_FILE": str(file)}) == Launch(2, 1)
    file.write_text("{}")
    with pytest.raises(ValueError, match=r"ds\.json names no zero_optimization\.stage"):
        Launch.from_environment(DEEPSPEED | {"ACCELERATE_DEEPSPEED_CONFIG_FILE": str(file)})


@pytest.mark.parametrize(
    ("override", "launch", "problem"),
    [
        ("rollout.overlap=true", Launch(2), "rollout.overlap: samples beside one process that trains"),
        ("rollout.server=x.json", Launch(2), "rollout.server: a server serves one process"),
        ("rollout.engine=vllm", Launch(2), "rollout.engine: vllm's process group"),
        ("algorithm.name=trpo", Launch(2, 1), "algorithm.name: trpo makes its own step"),
        ("model.lora={}", Launch(2, 3), "model.lora: with ZeRO-3"),
    ],
)
def test_what_a_launch_cannot_do_is_refused_when_the_recipe_is_read(override, launch, problem):
    mapping = reading.read(write(MINIMAL), [override])
    with pytest.raises(config.RecipeError) as error:
        config.parse(mapping, launch=launch)
    (line,) = error.value.problems
    assert line.startswith(problem)
    assert config.parse(mapping, launch=Launch()).launch == Launch()


def test_the_launch_of_this_process_is_the_default(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert config.parse(reading.read(write(MINIMAL))).launch == Launch(2)
