"""Several files, glob patterns and saved data sets as one data source."""

import json
from pathlib import Path
from typing import Any

import pytest
from chat_templates import CHATML, characters
from recipe_files import problem, resolve, write

from rlhf_pg import config
from rlhf_pg.data.prompts import load_rows, to_prompts
from rlhf_pg.models.tokenizer import character_tokenizer

LIMITS: Any = dict(max_prompt_tokens=64, context_length=128, max_new_tokens=8)


def jsonl(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def saved(folder, **splits):
    from datasets import Dataset, DatasetDict

    data: Any = {name: Dataset.from_list(rows) for name, rows in splits.items()}
    (DatasetDict(data) if "only" not in data else data["only"]).save_to_disk(folder)
    return folder


def test_files_of_a_pattern_come_sorted_and_rows_keep_file_and_line(tmp_path):
    for name in ("c", "a", "b"):
        jsonl(tmp_path / f"{name}.jsonl", {"q": name}, {"q": name * 2})
    rows = load_rows(path=tmp_path / "*.jsonl")
    assert [row["q"] for row in rows] == ["a", "aa", "b", "bb", "c", "cc"]
    assert rows.where(3) == f"{tmp_path / 'b.jsonl'}:2"
    assert rows.remarks() == [f"from 3 files, {tmp_path / 'a.jsonl'} to {tmp_path / 'c.jsonl'}"]
    assert load_rows(path=tmp_path / "*.jsonl", limit=3).where(2) == f"{tmp_path / 'b.jsonl'}:1"


def test_a_list_keeps_its_order_and_may_mix_kinds_and_patterns(tmp_path):
    jsonl(tmp_path / "z.jsonl", {"q": "z"})
    (tmp_path / "a.csv").write_text("q\na\n")
    saved(tmp_path / "s", only=[{"q": "s"}])
    rows = load_rows(path=[tmp_path / "z.jsonl", str(tmp_path / "*.csv"), tmp_path / "s"])
    assert [row["q"] for row in rows] == ["z", "a", "s"]
    assert rows.where(2) == f"{tmp_path / 's'}, row 0"


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path):
    jsonl(tmp_path / "[a].jsonl", {"q": 1})
    jsonl(tmp_path / "a.jsonl", {"q": 2})
    assert load_rows(path=tmp_path / "[a].jsonl") == [{"q": 1}]


def test_folders_below_are_searched_by_two_stars(tmp_path):
    jsonl(tmp_path / "x" / "y" / "a.jsonl", {"q": 1})
    assert load_rows(path=tmp_path / "**" / "*.jsonl") == [{"q": 1}]


def test_a_pattern_without_a_match_names_the_folder_and_what_is_there(tmp_path):
    jsonl(tmp_path / "data" / "a.json", {"q": 1})
    with pytest.raises(ValueError, match=rf"no file matches {tmp_path}/data/\*\.jsonl; in {tmp_path}/data: a\.json"):
        load_rows(path=tmp_path / "data" / "*.jsonl")
    with pytest.raises(ValueError, match=rf"there is no folder {tmp_path}/dat\b"):
        load_rows(path=tmp_path / "dat" / "*.jsonl")


def test_a_file_that_is_named_twice_is_refused(tmp_path):
    jsonl(tmp_path / "a.jsonl", {"q": 1})
    with pytest.raises(ValueError, match=r"a\.jsonl is named twice"):
        load_rows(path=[tmp_path / "a.jsonl", tmp_path / "*.jsonl"])


def test_a_folder_of_files_is_refused_with_the_pattern_for_it(tmp_path):
    jsonl(tmp_path / "d" / "a.jsonl", {"q": 1})
    with pytest.raises(ValueError, match=rf"{tmp_path}/d: a folder.*save_to_disk.*{tmp_path}/d/\*\.jsonl"):
        load_rows(path=tmp_path / "d")


def test_a_file_without_rows_among_others_is_said(tmp_path):
    jsonl(tmp_path / "a.jsonl")
    jsonl(tmp_path / "b.jsonl", {"q": 1})
    rows = load_rows(path=tmp_path / "*.jsonl")
    assert rows == [{"q": 1}] and rows.where(0) == f"{tmp_path / 'b.jsonl'}:1"
    assert f"no rows in {tmp_path / 'a.jsonl'}" in rows.remarks()


def test_a_file_that_lacks_a_column_is_named_with_the_row(tmp_path):
    jsonl(tmp_path / "a.jsonl", {"prompt": "1?", "answer": "1"})
    jsonl(tmp_path / "b.jsonl", {"prompt": "1?", "answer": "1"}, {"question": "2?", "answer": "2"})
    with pytest.raises(ValueError, match=r"b\.jsonl:2: no prompt column 'prompt'.*'question', 'answer'"):
        to_prompts(load_rows(path=tmp_path / "*.jsonl"), character_tokenizer(), split_name="train", **LIMITS)


def test_types_that_differ_from_file_to_file_are_said(tmp_path):
    jsonl(tmp_path / "a.jsonl", {"prompt": "1?", "answer": None}, {"prompt": "1?", "answer": 7})
    jsonl(tmp_path / "b.jsonl", {"prompt": "2?", "answer": "07"})
    rows = load_rows(path=tmp_path / "*.jsonl")
    told = f"column 'answer' is a number in {tmp_path / 'a.jsonl'} and text in {tmp_path / 'b.jsonl'}"
    assert told in rows.remarks()


def test_text_in_one_file_and_messages_in_another_are_refused(tmp_path):
    jsonl(tmp_path / "a.jsonl", {"prompt": "1?", "answer": "1"})
    jsonl(tmp_path / "b.jsonl", {"prompt": [{"role": "user", "content": "2?"}], "answer": "2"})
    rows = load_rows(path=tmp_path / "*.jsonl")
    with pytest.raises(ValueError, match=r"b\.jsonl:1: the prompt is messages, and text in .*a\.jsonl:1"):
        to_prompts(rows, characters(CHATML), split_name="train", **LIMITS)


def test_how_many_files_were_read_is_part_of_the_line_about_the_data(tmp_path):
    from rlhf_pg.training.prompts import note

    for name in "ab":
        jsonl(tmp_path / f"{name}.jsonl", {"prompt": name, "answer": "1"})
    rows = load_rows(path=tmp_path / "*.jsonl")
    made = to_prompts(rows, character_tokenizer(), split_name="train", template="plain", **LIMITS)
    assert "2 prompts" in note("train", made) and f"from 2 files, {tmp_path / 'a.jsonl'} to" in note("train", made)


# ---- datasets.save_to_disk


def test_a_saved_data_set_is_read_with_its_types(tmp_path):
    import pyarrow
    from datasets import Dataset

    rows = [{"q": "1?", "a": 7, "m": [{"role": "user", "content": "x"}]}, {"q": "2?", "a": None, "m": []}]
    assert load_rows(path=saved(tmp_path / "s", only=rows)) == rows
    floats = Dataset(pyarrow.table({"a": pyarrow.array([0.1, None, 5e-05], pyarrow.float32())}))
    floats.save_to_disk(tmp_path / "f")
    assert [row["a"] for row in load_rows(path=tmp_path / "f")] == [0.1, None, 5e-05]


def test_a_saved_data_set_that_was_filtered_and_formatted_gives_its_own_rows(tmp_path):
    from datasets import Dataset

    whole = Dataset.from_list([{"a": number} for number in range(9)])
    whole.filter(lambda row: row["a"] % 2 == 0).shuffle(seed=1).sort("a").with_format("numpy").save_to_disk(
        tmp_path / "s"
    )
    rows = load_rows(path=tmp_path / "s")
    assert rows == [{"a": 0}, {"a": 2}, {"a": 4}, {"a": 6}, {"a": 8}]
    assert all(type(row["a"]) is int for row in rows)


def test_of_several_saved_splits_the_named_one_is_read(tmp_path):
    folder = saved(tmp_path / "s", train=[{"q": "t"}], test=[{"q": "e"}])
    assert load_rows(path=folder) == [{"q": "t"}]
    assert load_rows(path=folder, split="test") == [{"q": "e"}]
    assert load_rows(path=folder / "test") == [{"q": "e"}]
    with pytest.raises(ValueError, match=rf"{folder}: no split 'heldout'; it has train, test"):
        load_rows(path=folder, split="heldout")


def test_a_damaged_saved_data_set_is_named(tmp_path):
    folder = saved(tmp_path / "s", only=[{"q": "t"}])
    next(folder.glob("*.arrow")).write_bytes(b"no arrow")
    with pytest.raises(ValueError, match=rf"{folder}: cannot be read"):
        load_rows(path=folder)


# ---- in recipes


def test_a_recipe_takes_one_path_a_pattern_or_a_list(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        jsonl(tmp_path / f"{name}.jsonl", {"prompt": "1?", "answer": "1"})
    columns = ["data.train.task=null", "data.train.prompt=prompt", "data.train.answer=answer"]
    for given, parsed in [
        ("a.jsonl", Path("a.jsonl")),
        ("*.jsonl", Path("*.jsonl")),
        ("[ab].jsonl", Path("[ab].jsonl")),
        ("[a.jsonl, b.jsonl]", [Path("a.jsonl"), Path("b.jsonl")]),
    ]:
        recipe = resolve(f"data.train.path={given}", *columns)
        assert recipe.data.train.path == parsed
        Path("again.yaml").write_text(config.dump(recipe))
        assert config.load("again.yaml").data.train.path == parsed
    assert problem("data.train.path=7", *columns) == "data.train.path: must be a path or a list of paths"
    assert problem("data.train.path=[]", *columns).startswith("data.train.path: ")
    assert "no file matches x*.jsonl; in ." in problem("data.train.path=x*.jsonl", *columns)
    assert problem("data.train.path=[a.jsonl, c.jsonl]", *columns).startswith("data.train.path: no file c.jsonl")


@pytest.mark.parametrize("name", ["recipes", "odd [1] *"])
def test_patterns_and_lists_are_found_beside_the_recipe_first(tmp_path, monkeypatch, name):
    for place in (tmp_path, tmp_path / name):
        jsonl(place / "data" / "a.jsonl", {"prompt": str(place), "answer": "1"})
    jsonl(tmp_path / "here.jsonl", {"prompt": "here", "answer": "1"})
    text = "run: {dir: r}\nmodel: {path: tiny}\nrewards: [{fn: gsm8k}]\ndata: {train: {path: PATH, template: plain}}\n"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for folder in (tmp_path, elsewhere):
        monkeypatch.chdir(folder)
        for given in ("'data/*.jsonl'", "[data/a.jsonl]", "['data/[a].jsonl']", "'../*/data/a.jsonl'"):
            recipe = config.load(write(text.replace("PATH", given), str(tmp_path / name / "r.yaml")))
            assert recipe.data.train.path is not None
            assert [row["prompt"] for row in load_rows(path=recipe.data.train.path)] == [str(tmp_path / name)]
    monkeypatch.chdir(tmp_path)
    recipe = config.load(write(text.replace("PATH", "[data/a.jsonl, 'he*.jsonl']"), str(tmp_path / name / "r.yaml")))
    assert recipe.data.train.path is not None
    assert [row["prompt"] for row in load_rows(path=recipe.data.train.path)] == [str(tmp_path / name), "here"]


def test_split_has_an_effect_with_saved_splits_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "many", train=[{"q": "t"}], test=[{"q": "e"}])
    saved(tmp_path / "one", only=[{"q": "t"}])
    columns = ["data.train.task=null", "data.train.prompt=q", "data.train.answer=q"]
    recipe = resolve("data.train.path=many", "data.train.split=test", *columns)
    assert recipe.data.train.split == "test" and "split: test" in config.dump(recipe)
    told = problem("data.train.path=one", "data.train.split=test", *columns)
    assert told.startswith("data.train.split: has no effect with data.train.path")
    told = problem("data.train.path=many", "data.train.split=dev", *columns)
    assert told == "data.train.split: no split 'dev' in many; it has train, test"
    told = problem("data.train.path=many", "data.eval.path=many", *columns)
    assert told == "data.eval.split: name one of the splits of many: train, test"
