"""A cold start imitates the solutions, and a finished one is neither repeated nor taken for another."""

import json
from pathlib import Path

import pytest
from chat_templates import sentencepiece_like
from transformers import Qwen2Config

from rlhf_pg import config
from rlhf_pg.commands import run_sft
from rlhf_pg.commands.run_sft import _examples, _learner, sft
from rlhf_pg.distributed.backend import Backend
from rlhf_pg.estimate.microbatch import suitable_positions
from rlhf_pg.models.export import save_model
from rlhf_pg.models.load import tiny_model
from rlhf_pg.models.tokenizer import character_tokenizer


def recipe(folder, **run):
    raw = {
        "run": {"dir": str(folder), "resume": "auto", **run},
        "model": {"path": "tiny"},
        "data": {"train": {"task": "arithmetic", "options": {"count": 32}}},
        "sft": {"epochs": 8, "batch_size": 16},
        "optimizer": {"lr": 3e-3},
        "log": {"live": "off"},
    }
    return config.parse(raw, config.SftRecipe)


def test_its_micro_batches_are_those_of_every_other_learner():
    given = recipe(Path("unused"))
    learner, model = _learner(given, Backend(), total=1)
    assert learner.update.positions == suitable_positions(model.config, given.model, shared=False)


def test_the_loss_falls_and_a_finished_cold_start_is_left_alone_but_not_taken_for_another_seed(tmp_path):
    assert sft(recipe(tmp_path)) == 0
    losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 16
    assert losses[-1] < 0.7 * losses[0]
    written = (tmp_path / "model" / "model.safetensors").stat().st_mtime_ns
    assert sft(recipe(tmp_path)) == 0
    assert (tmp_path / "model" / "model.safetensors").stat().st_mtime_ns == written
    with pytest.raises(ValueError, match=r"another run; changed: run\.seed \(was 0, is 1\)"):
        sft(recipe(tmp_path, seed=1))


def examples_of(folder, rows, tokenizer, column=None, path="tiny", **source):
    file = folder / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    source = {"path": str(file), "prompt": "q", "answer": "a", "template": "plain", **source}
    raw = {
        "run": {"dir": str(folder / "run")},
        "model": {"path": path},
        "data": {"train": source},
        "sft": {"completion": column} if column else {},
    }
    examples, _ = _examples(config.parse(raw, config.SftRecipe), tokenizer)
    return [tokenizer.convert_ids_to_tokens(example.completion.tokens.tolist()) for example in examples]


def test_a_solution_has_the_tokens_of_the_whole_text_and_one_end(tmp_path):
    rows = [{"q": "What is", "a": 2, "solution": text} for text in ("12", "12</s>", " 1")]
    made = examples_of(tmp_path, rows, sentencepiece_like())
    assert made == [["1", "2", "</s>"], ["1", "2", "</s>"], ["▁1", "</s>"]]  # by itself, "12" is "▁12"


def test_a_solution_may_be_in_a_nested_column(tmp_path):
    rows = [{"q": "1+1=", "a": 2, "extra_info": {"steps": "2."}}]
    assert examples_of(tmp_path, rows, character_tokenizer(), "extra_info.steps") == [["2", ".", "<eos>"]]
    with pytest.raises(
        ValueError, match=r"sft\.completion: no column 'extra_info\.step' in train/0; .*extra_info\.steps"
    ):
        examples_of(tmp_path, rows, character_tokenizer(), "extra_info.step")


@pytest.mark.parametrize("value", [None, "", [], {"x": 1}])
def test_a_solution_that_is_no_text_is_refused_with_its_row(tmp_path, value):
    rows = [{"q": "1+1=", "a": 2, "solution": "2"}, {"q": "1+2=", "a": 3, "solution": value}]
    with pytest.raises(ValueError, match=r"sft\.completion: column 'solution' of train/1 is"):
        examples_of(tmp_path, rows, character_tokenizer(), "solution")


def test_a_tokenizer_and_a_model_without_an_end_are_refused(tmp_path, monkeypatch):
    own = character_tokenizer()
    own.eos_token = None
    monkeypatch.setattr(run_sft, "load_config", lambda *unused, **named: Qwen2Config(vocab_size=99, eos_token_id=None))
    with pytest.raises(ValueError, match="no end-of-sequence token"):
        examples_of(tmp_path, [{"q": "1+1=", "a": 2, "solution": "2"}], own)


def test_a_tokenizer_without_an_end_takes_the_models(tmp_path):
    own = character_tokenizer()
    own.eos_token = None
    assert examples_of(tmp_path, [{"q": "1+1=", "a": 2, "solution": "2"}], own) == [["2", "<eos>"]]


def test_in_a_chat_a_solution_ends_as_a_turn_does(tmp_path):
    model = tiny_model(seed=0, vocabulary=101)
    letters = character_tokenizer()
    letters.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    letters.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}"
    )
    save_model(model, letters, tmp_path / "model")
    rows, path = [{"q": "1+1=", "a": 2, "solution": "2"}], str(tmp_path / "model")
    assert examples_of(tmp_path, rows, letters, path=path, template="chat") == [["2", "<|im_end|>"]]
    assert examples_of(tmp_path, rows, letters, path=path, template="plain") == [["2", "<eos>"]]
