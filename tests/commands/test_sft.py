"""A cold start imitates the solutions, and a finished one is neither repeated nor taken for another."""

import json
from pathlib import Path

import pytest
from chat_templates import sentencepiece_like

from rlhf_pg import config
from rlhf_pg.commands.run_sft import _examples, _learner, sft
from rlhf_pg.distributed.backend import Backend
from rlhf_pg.estimate.microbatch import suitable_positions
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


def examples_of(folder, rows, tokenizer, column=None, **source):
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    source = {"path": str(path), "prompt": "q", "answer": "a", "template": "plain", **source}
    raw = {
        "run": {"dir": str(folder / "run")},
        "model": {"path": "tiny"},
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


def test_a_tokenizer_without_an_end_is_refused(tmp_path):
    own = character_tokenizer()
    own.eos_token = None
    with pytest.raises(ValueError, match="no eos_token: solutions could not end"):
        examples_of(tmp_path, [{"q": "1+1=", "a": 2, "solution": "2"}], own)
