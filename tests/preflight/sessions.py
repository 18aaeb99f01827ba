"""Small sessions for the preflight tests: the embedded model on additions, and an engine to override."""

import random
from dataclasses import replace

import numpy as np
import torch

from rlhf_pg import config
from rlhf_pg.preflight import checks
from rlhf_pg.training.setup import Session, build

EOS = 1  # of the embedded tokenizer


def small_session(scorer, tmp_path, **changes) -> Session:
    """The embedded model on additions; its own scorer has started no process yet."""
    return replace(build(small_recipe(tmp_path, **changes)), scorer=scorer)


def small_recipe(tmp_path, **changes) -> config.ResolvedRecipe:
    recipe = {
        "run": {"dir": str(tmp_path / "run")},
        "model": {"path": "tiny"},
        "data": {"train": {"task": "arithmetic", "options": {"count": 64}}},
        "rollout": {"temperature": 0.8},
        "rewards": [{"fn": "gsm8k"}],
    }
    return config.parse(recipe | changes, config.Recipe)


def refused(session) -> set[str]:
    return {finding.name for finding in checks.findings(session) if finding.ok is False}


def finding(session, name) -> checks.Finding:
    return next(f for f in checks.findings(session) if f.name == name)


def everything(session) -> list:
    """All state that a check must not change, bit for bit and comparable."""
    parameters = list(session.model.parameters())
    return [
        [p.detach().view(torch.int32).tolist() for p in parameters],
        [None if p.grad is None else p.grad.tolist() for p in parameters],
        [p.requires_grad for p in parameters],
        [m.training for m in session.learner.policy.modules()],
        torch.get_rng_state().tolist(),
        random.getstate(),
        str(np.random.get_state()),
        session.sampler.state(),
        session.engine.version,
        session.learner.updates,
        [(key, value.tolist()) for state in session.learner.optimizer.state.values() for key, value in state.items()],
    ]


class Wrapped:
    """An engine that is another one but for what a test overrides."""

    def __init__(self, engine):
        self.engine, self.eos_ids = engine, engine.eos_ids

    @property
    def version(self):
        return self.engine.version

    def generate(self, prompts, sampling, progress=None, finished=None):
        return self.engine.generate(prompts, sampling, progress, finished)

    def load_weights(self, tensors, version):
        self.engine.load_weights(tensors, version)
