"""Helpers for engines that have a copy of the policy: change its weights, and see which weights were sampled from."""

from __future__ import annotations

import copy

import torch

from rlhf_pg.rollout.native import NativeEngine
from tests.rollout.contract import assert_log_probs


class Borrowed:
    """An engine that outlives the test, as starting one takes seconds. It begins with the test's model."""

    def __init__(self, engine, model):
        self.engine = engine
        engine.load_weights(model.state_dict().items(), version=0)

    def __getattr__(self, name):
        return getattr(self.engine, name)

    def close(self):
        pass


class CopyingEngine(NativeEngine):
    """Samples from a copy of the model, as vLLM does: it has new weights of those that `load_weights` names, only."""

    def __init__(self, model, eos_ids, slots=256, version=0):
        super().__init__(copy.deepcopy(model), eos_ids, slots, version)


def nudge(model, by=0.3):
    """Move every trained weight, by the same amounts every time."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(by * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)))


def assert_sampled_from(model, prompts, groups):
    """The log-probs of all completions are those of a full forward of this model."""
    assert_log_probs(model, prompts, groups)
