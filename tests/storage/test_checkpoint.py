"""A checkpoint comes back bit for bit, and a damaged one is never loaded."""

import hashlib
import json
import logging
import os
import pickle
import random
import shutil

import pytest
import safetensors
import safetensors.torch
import torch

from rlhf_pg.storage import checkpoint
from tests.storage.one_value import save, value_of

# ---- what goes in comes out


def test_every_dtype_comes_back_with_exact_bits_and_shape(tmp_path):
    bits = torch.tensor(
        [0x7FC00001, 0x00000001, -0x80000000, 0x3F800000], dtype=torch.int32
    )  # NaN payload, denormal, -0
    tensors = {
        "f32": bits.view(torch.float32),
        "bf16": torch.tensor([0x7FC1, 1, -0x8000], dtype=torch.int16).view(torch.bfloat16),
        "f64": torch.tensor([[0.1, -1e-310]], dtype=torch.float64),
        "f16": torch.tensor([65504.0], dtype=torch.float16),
        "i64": torch.tensor([2**63 - 1, -(2**63)]),
        "u8": torch.arange(256, dtype=torch.uint8),
        "bool": torch.tensor([[True], [False]]),
        "zero_dim": torch.tensor(3.5),
        "zero_dim_bool": torch.tensor(True),
        "empty": torch.empty(0, 4),
        "transposed": torch.arange(6.0).reshape(2, 3).t(),
        "slice": torch.arange(10)[3:7:2],
    }
    back, _ = checkpoint.load(checkpoint.save(tmp_path, 1, {"weights": tensors}, {}, 1))
    assert set(back["weights"]) == set(tensors)
    for name, tensor in tensors.items():
        other = back["weights"][name]
        assert (other.dtype, other.shape) == (tensor.dtype, tensor.shape), name
        assert raw(other) == raw(tensor), name


def raw(tensor: torch.Tensor) -> list[list[int]]:
    return [element.reshape(1).view(torch.uint8).tolist() for element in tensor.flatten()]


def test_the_library_opens_the_files(tmp_path):
    tensors = {"b": torch.arange(5), "a": torch.randn(3, 2).bfloat16(), "c": torch.tensor([True])}
    path = checkpoint.save(tmp_path, 1, {"weights": tensors}, {}, 1)
    opened = safetensors.torch.load_file(path / "weights.safetensors")
    assert set(opened) == set(tensors)
    assert all(torch.equal(opened[name], tensors[name]) for name in tensors)


def test_every_tensor_is_aligned_to_its_element_size(tmp_path):
    tensors = {"a": torch.ones(3, dtype=torch.bool), "b": torch.ones(1, dtype=torch.int64), "c": torch.ones(1).half()}
    data = (checkpoint.save(tmp_path, 1, {"weights": tensors}, {}, 1) / "weights.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    starts = {name: 8 + length + header[name]["data_offsets"][0] for name in tensors}
    assert [starts["b"] % 8, starts["c"] % 2, len(data) - starts["a"]] == [0, 0, 3]


def test_tied_weights_are_stored_once_and_tied_again(tmp_path):
    table = torch.nn.Parameter(torch.randn(100, 8))
    tensors = {"embed": table, "head": table.data, "rows": table.data[:50], "copy": table.data.clone()}
    path = checkpoint.save(tmp_path, 1, {"weights": tensors}, {}, 1)
    assert (
        path / "weights.safetensors"
    ).stat().st_size < 2.6 * 100 * 8 * 4  # table, its copy, half of it; not the head
    back = checkpoint.load(path)[0]["weights"]
    assert back["embed"].data_ptr() == back["head"].data_ptr()
    assert len({back[name].data_ptr() for name in ("embed", "rows", "copy")}) == 3
    assert torch.equal(back["head"], table.data) and torch.equal(back["rows"], table.data[:50])


def test_state_comes_back_equal(tmp_path):
    state = {"lr": 0.1 + 0.2, "big": 2**70, "text": "π", "list": [1, None, True, {"deep": []}], "worst": float("-inf")}
    assert checkpoint.load(checkpoint.save(tmp_path, 0, {}, state, 1)) == ({}, state)


def test_an_empty_group_comes_back_empty(tmp_path):
    assert checkpoint.load(checkpoint.save(tmp_path, 0, {"pending": {}}, {}, 1))[0] == {"pending": {}}


def test_loaded_tensors_do_not_read_from_the_file(tmp_path):
    path = save(tmp_path, 1, 7)
    tensors, _ = checkpoint.load(path)
    (path / "weights.safetensors").write_bytes(b"\xff" * (path / "weights.safetensors").stat().st_size)
    assert tensors["weights"]["w"].tolist() == [7.0] * 64


@pytest.mark.parametrize(
    ("state", "named"),
    [
        ({"cursor": {3: 1}}, r"state\.cursor has the key 3"),
        ({"seen": [1, torch.ones(1)]}, r"state\.seen\[1\] is a Tensor"),
        ({"ids": {1, 2}}, r"state\.ids is a set"),
    ],
)
def test_state_that_json_would_change_is_refused_by_name(tmp_path, state, named):
    with pytest.raises(ValueError, match=named):
        checkpoint.save(tmp_path, 1, {}, state, 1)
    assert checkpoint.latest(tmp_path) is None


def test_what_cannot_be_stored_is_refused_by_name_and_leaves_nothing_behind(tmp_path):
    with pytest.raises(ValueError, match=r"weights/w of torch\.complex64"):
        checkpoint.save(tmp_path, 1, {"weights": {"w": torch.ones(1, dtype=torch.complex64)}}, {}, 1)
    with pytest.raises(ValueError, match=r"group '\.\./evil'"):
        checkpoint.save(tmp_path, 1, {"../evil": {}}, {}, 1)
    save(tmp_path, 1, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]


# ---- which checkpoints there are


def test_the_newest_keep_stay(tmp_path):
    for step in (5, 10, 15, 100_000_000):
        save(tmp_path, step, step, keep=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000010", "step_00000015", "step_100000000"]
    assert value_of(checkpoint.latest(tmp_path)) == 100_000_000


def test_a_damaged_checkpoint_does_not_push_out_a_good_one(tmp_path):
    save(tmp_path, 1, 1)
    (save(tmp_path, 2, 2) / "state.json").unlink()
    save(tmp_path, 3, 3, keep=2)
    assert (tmp_path / "step_00000001").exists()


def test_saving_after_going_back_drops_the_future_that_was_left(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step, step, keep=9)
    save(tmp_path, 2, 22, keep=9)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000001", "step_00000002"]
    assert value_of(checkpoint.latest(tmp_path)) == 22


def test_there_is_no_latest_where_nothing_is(tmp_path):
    assert checkpoint.latest(tmp_path) is None
    assert checkpoint.latest(tmp_path / "absent") is None
    assert not checkpoint.exists(tmp_path / "absent")


def test_looking_for_the_latest_does_not_touch_a_save_in_progress(tmp_path):
    save(tmp_path, 1, 1)
    (tmp_path / ".tmp-step_00000002").mkdir()
    assert value_of(checkpoint.latest(tmp_path)) == 1
    assert (tmp_path / ".tmp-step_00000002").exists()
    save(tmp_path, 3, 3)
    assert not (tmp_path / ".tmp-step_00000002").exists()


# ---- damage


FILES = ("weights.safetensors", "optimizer.safetensors", "state.json", "manifest.json")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "truncated", "emptied", "longer", "flipped"])
def test_a_damaged_newer_checkpoint_is_skipped_and_named(tmp_path, caplog, name, damage):
    save(tmp_path, 1, 1)
    file = save(tmp_path, 2, 2) / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1 << 4
    intact = file.read_bytes()
    new = {"truncated": intact[:-1], "emptied": b"", "longer": intact + b"}", "flipped": bytes(data)}
    file.unlink() if damage == "missing" else file.write_bytes(new[damage])
    with caplog.at_level(logging.WARNING):
        assert value_of(checkpoint.latest(tmp_path)) == 1
    assert str(file) in caplog.text
    with pytest.raises(ValueError, match=f"{file}"):
        checkpoint.load(tmp_path / "step_00000002")


def test_no_flipped_bit_is_ever_loaded(tmp_path):
    path = save(tmp_path, 1, 1)
    chance = random.Random(0)
    for name in FILES:
        intact = (path / name).read_bytes()
        for position in range(len(intact)):
            data = bytearray(intact)
            data[position] ^= 1 << chance.randrange(8)
            (path / name).write_bytes(data)
            try:
                assert value_of(path) == 1  # only white space of the manifest may change without harm
                assert name == "manifest.json" and intact[position : position + 1].isspace()
            except ValueError as error:
                assert name in str(error)
        (path / name).write_bytes(intact)
    assert value_of(path) == 1


def test_a_renamed_checkpoint_is_not_taken_for_another_step(tmp_path):
    save(tmp_path, 1, 1)
    os.rename(tmp_path / "step_00000001", tmp_path / "step_00000009")
    assert checkpoint.latest(tmp_path) is None
    shutil.move(tmp_path / "step_00000009", tmp_path / "best")
    assert value_of(tmp_path / "best") == 1


class Bomb:
    def __reduce__(self):
        return (os.mkdir, (os.environ["BOMB"],))


def test_a_pickle_in_place_of_tensors_is_not_executed(tmp_path, monkeypatch):
    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    path = save(tmp_path, 1, 1)
    evil = pickle.dumps(Bomb())
    (path / "weights.safetensors").write_bytes(evil)
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["sha256"]
    manifest["files"]["weights.safetensors"] = {"size": len(evil), "sha256": hashlib.sha256(evil).hexdigest()}
    manifest["sha256"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(safetensors.SafetensorError):
        checkpoint.load(path)
    assert not (tmp_path / "exploded").exists()
