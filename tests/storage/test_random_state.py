"""Random streams come back exactly."""

import random

import numpy as np
import pytest
import torch

from rlhf_pg.storage import checkpoint, random_state


def draws() -> list[float]:
    return [
        *torch.rand(3).tolist(),
        *np.random.standard_normal(3).tolist(),
        random.gauss(0, 1),
        random.random(),
        float(torch.randn(1)),
    ]


def test_random_streams_continue_where_they_were(tmp_path):
    torch.manual_seed(1)
    np.random.seed(2)
    random.seed(3)
    draws()  # odd numbers of Gaussians: numpy and random each hold one back
    tensors, numbers = random_state.capture()
    path = checkpoint.save(tmp_path, 0, {"random": tensors}, {"random": numbers}, 1)
    expected = draws()
    assert draws() != expected
    loaded, state = checkpoint.load(path)
    random_state.restore(loaded["random"], state["random"])
    assert draws() == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_streams_of_every_gpu_continue_where_they_were():
    tensors, numbers = random_state.capture()
    expected = [torch.rand(3, device=f"cuda:{i}").tolist() for i in range(torch.cuda.device_count())]
    random_state.restore(tensors, numbers)
    assert [torch.rand(3, device=f"cuda:{i}").tolist() for i in range(torch.cuda.device_count())] == expected


def test_a_stream_of_an_absent_gpu_is_left_out_with_a_warning(caplog):
    tensors, numbers = random_state.capture()
    random_state.restore({**tensors, "cuda.99": tensors["cpu"]}, numbers)
    assert "cuda.99" in caplog.text
