"""The digest is what hashlib gives for the bytes written by hand."""

import hashlib
import struct

import torch
from torch import nn

from rlhf_pg.storage.digest import weights_digest


def test_the_digest_is_sha256_of_name_dtype_shape_and_bytes():
    named = {"b": torch.tensor([[1.5, -2.0]]), "a": torch.tensor(7)}
    written = (
        b"a\0torch.int64\0()\0" + struct.pack("<q", 7) + b"b\0torch.float32\0(1, 2)\0" + struct.pack("<ff", 1.5, -2)
    )
    assert weights_digest(named) == hashlib.sha256(written).hexdigest()
    assert weights_digest(iter(sorted(named.items()))) == weights_digest(named)


def test_the_digest_sees_every_change_and_no_layout():
    base = torch.arange(6.0).reshape(2, 3)
    digest = weights_digest({"w": base})
    assert weights_digest({"w": nn.Parameter(base.t().contiguous().t())}) == digest
    nudged = base.clone()
    nudged.view(torch.int32)[1, 2] += 1  # one bit
    changed = [
        {"v": base},
        {"w": base.reshape(3, 2)},
        {"w": base.view(torch.int32)},
        {"w": nudged},
        {"w": base, "x": base},
    ]
    assert len({digest, *(weights_digest(named) for named in changed)}) == 6
