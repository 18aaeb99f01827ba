"""The vectors that a natural gradient step keeps are as many as the estimate of memory counts."""

import gc
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from rlhf_pg.algorithms.base import TrustRegionOptions
from rlhf_pg.functional.trust_region import PRODUCT_VECTORS, SEARCH_VECTORS
from rlhf_pg.training import trust_region_step

SIZE = 7919  # of the vectors: no other tensor here is as long


class Quadratic:
    """A region of a policy whose KL is |offset|^2 / 2 x stiffness; counts the vectors alive when it is asked."""

    def __init__(self):
        self.learner = SimpleNamespace(objective=SimpleNamespace(options=TrustRegionOptions()), seed=0)
        self.batch: Any = SimpleNamespace(group=torch.zeros(4), number=None, sizes=None)
        self.stiffness = torch.linspace(1, 2, SIZE)
        self.in_product = self.in_search = 0

    def vectors(self) -> int:
        alive = [o for o in gc.get_objects() if type(o) is Tensor and o.shape == (SIZE,)]
        return len({tensor.data_ptr() for tensor in alive}) - 1  # without the stiffness

    def gradient(self):
        return torch.linspace(-1, 1, SIZE), {}

    def remember(self): ...

    def kl_gradient(self, offset, rows):
        self.in_product = max(self.in_product, self.vectors())
        return self.stiffness * offset

    def measure(self, offset):
        self.in_search = max(self.in_search, self.vectors())
        return 1.0, 0.0  # refused, so that every share is tried

    def move(self, offset): ...

    def passes(self):
        return {}


def test_vectors_of_a_fisher_product_and_of_the_line_search_are_those_counted():
    region = Quadratic()
    metrics = trust_region_step._step(region, step=1)  # pyright: ignore[reportArgumentType]
    assert metrics["trust/line_search_steps"] == 10
    assert (region.in_product, region.in_search) == (PRODUCT_VECTORS, SEARCH_VECTORS)
