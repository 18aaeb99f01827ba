"""A parquet file as verl writes it is checked and trained on, by a tokenizer with a chat template."""

import json

import pyarrow
import pyarrow.parquet
import pytest
from chat_templates import THINKING, characters

from rlhf_pg import cli

REWARD = """
def nested(completion, reward_model, extra_info):
    assert extra_info["split"] == "train"
    return float(completion.strip() == reward_model["ground_truth"])
"""


def row(index: int):
    turns = [{"role": "user", "content": f"{index}+1=? Answer after ####."}]
    if index % 2:
        turns = [{"role": "system", "content": "Be brief."}, *turns]
    return {
        "data_source": "sums",
        "prompt": turns,
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": str(index + 1)},
        "extra_info": {"split": "train", "index": index},
    }


@pytest.fixture
def recipe(tmp_path):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row(i) for i in range(8)]), tmp_path / "train.parquet")
    characters(THINKING).save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "nested.py").write_text(REWARD)
    source = {"path": str(tmp_path / "train.parquet"), "prompt": "prompt", "answer": "reward_model.ground_truth"}
    raw = {
        "run": {"dir": str(tmp_path / "run"), "steps": 1},
        "model": {"path": "tiny", "tokenizer": str(tmp_path / "tokenizer")},
        "data": {"train": {**source, "template_options": {"enable_thinking": False}}},
        "rollout": {"prompts_per_step": 4, "samples_per_prompt": 2, "max_new_tokens": 8},
        "rewards": [{"fn": f"{tmp_path / 'nested.py'}:nested"}],
        "log": {"live": "off"},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(raw))
    return str(tmp_path / "recipe.yaml")


def test_it_is_checked_and_trained_on(recipe, tmp_path, capsys):
    assert cli.main(["check", recipe]) == 0
    assert "data.train: 8 prompts, template chat" in capsys.readouterr().out
    assert cli.main(["train", recipe]) == 0
    (written,) = (tmp_path / "run" / "rollouts").iterdir()
    samples = [json.loads(line) for line in written.read_text().splitlines()]
    assert samples and all(s["prompt"].endswith("<im>assistant\n<think>\n\n</think>\n\n") for s in samples)


def test_an_option_that_the_template_lacks_stops_it_before_the_model_is_loaded(recipe, capsys):
    assert cli.main(["check", recipe, "data.train.template_options={thinkin: false}"]) == 2
    text = " ".join(capsys.readouterr().err.split())
    assert "data.train: template_options.thinkin: the chat template of" in text
    assert "(chat_template.jinja) never mentions it; it has enable_thinking" in text
