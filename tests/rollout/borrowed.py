"""Helpers for engines that have a copy of the policy: change its weights, and see which weights were sampled from."""

from __future__ import annotations

import torch

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


def nudge(model, by=0.3):
    """Move every trained weight, by the same amounts every time."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(by * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)))


def assert_sampled_from(model, prompts, groups):
    """The log-probs of all completions are those of a full forward of this model."""
    assert_log_probs(model, prompts, groups)
