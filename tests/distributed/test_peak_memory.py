"""The memory that a run reports is what its tensors took since it joined, in GiB."""

import torch

from rlhf_pg.distributed.backend import Backend

QUARTER = 2**26  # float32 numbers in a quarter of a GiB


def test_tensors_are_counted_at_their_peak_and_those_of_before_are_not():
    earlier = torch.ones(QUARTER)
    del earlier  # the peak of an earlier run in this process
    kept = torch.ones(QUARTER)
    backend = Backend()
    before = backend.peak_memory_gib()
    passing = torch.ones(QUARTER)
    del passing
    assert before < 0.1
    assert 0.2 < backend.peak_memory_gib() - before < 0.3
    assert float(kept[0]) == 1
