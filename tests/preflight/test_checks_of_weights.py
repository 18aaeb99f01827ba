"""Preflight sees whether changed weights reach the engine, and puts every weight back bit for bit."""

import copy
from dataclasses import replace

import pytest
import torch

from rlhf_pg.preflight import probe
from rlhf_pg.rollout.native import NativeEngine
from rlhf_pg.types import Prompt
from tests.preflight.sessions import EOS, Wrapped, everything, finding, refused


def test_an_engine_with_a_stale_copy_of_the_model_is_refused(session):
    session.engine = NativeEngine(copy.deepcopy(session.model), [EOS])
    assert refused(session) == {"weights reach engine"}


def test_a_stale_engine_is_refused_even_where_weights_hardly_matter(session):
    with torch.no_grad():
        session.model.lm_head.weight.mul_(1e-3)  # logits near 0: the perturbation moves no log-prob by the limit
    session.reference = None
    assert refused(session) == set()
    session.engine = NativeEngine(copy.deepcopy(session.model), [EOS])
    assert refused(session) == {"weights reach engine"}


def test_an_engine_with_one_stale_weight_is_refused(session):
    model = copy.deepcopy(session.model)
    live, norm = session.model.model, model.model.norm
    model.model.layers, model.model.embed_tokens = live.layers, live.embed_tokens
    model.lm_head.weight = session.model.lm_head.weight
    assert norm.weight is not live.norm.weight
    session.engine = NativeEngine(model, [EOS])
    assert refused(session) == {"weights reach engine"}


class Copying(Wrapped):
    """Keeps weights of its own and fetches the live ones when told to, at most `times` times."""

    def __init__(self, model, times):
        super().__init__(NativeEngine(copy.deepcopy(model), [EOS]))
        self.live, self.times = model, times

    def load_weights(self, tensors, version):
        self.times -= 1
        self.engine.load_weights(self.live.state_dict().items() if self.times >= 0 else (), version)


def test_an_engine_that_fetches_weights_passes_and_one_that_keeps_the_perturbed_ones_is_refused(session):
    session.engine = Copying(session.model, times=100)
    assert refused(session) == set()
    session.engine = Copying(session.model, times=1)
    assert refused(session) == {"weights reach engine"}


def test_an_engine_that_does_not_count_versions_is_refused(session):
    class Uncounted(Wrapped):
        def load_weights(self, tensors, version):
            pass

    session.engine = Uncounted(session.engine)
    assert refused(session) == {"weights reach engine"}
    assert "asked for versions 1, 0: 0, 0" in finding(session, "weights reach engine").figure


@pytest.mark.parametrize("fails", ["load_weights", "generate"])
def test_weights_are_restored_when_the_engine_raises_in_the_middle(session, fails):
    seen = []

    class Fails(Wrapped):
        def load_weights(self, tensors, version):
            super().load_weights(tensors, version)
            self.check("load_weights")

        def generate(self, prompts, sampling, progress=None, finished=None):
            self.check("generate")
            return super().generate(prompts, sampling, progress, finished)

        def check(self, where):
            if self.version == 1 and where == fails:
                seen.append(session.model.model.norm.weight[0].item())
                raise OSError("the engine is gone")

    before = everything(session)
    session.engine = Fails(session.engine)
    assert refused(session) == {"weights reach engine"}
    assert seen == [1.0 + 2**-4]  # it did raise while the weights were changed
    assert everything(session) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_perturbation_changes_every_trained_weight_a_little_and_undoes_itself_exactly(dtype):
    model = torch.nn.Linear(4, 3).to(dtype)
    model.frozen = torch.nn.Parameter(torch.ones(2, dtype=dtype), requires_grad=False)
    model.bias.data.zero_()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(KeyboardInterrupt), probe.perturbed(model):
        change = ((model.weight - before["weight"]) / before["weight"]).abs()
        assert ((change >= 2**-5) & (change <= 2**-4)).all()
        assert (model.bias == 2**-7).all() and (model.frozen == 1).all()
        raise KeyboardInterrupt
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_a_probe_of_long_prompts_is_short_and_its_lengths_differ():
    prompts = [Prompt(f"train/{i}", "", tuple(range(1, 1001))) for i in range(3)]
    assert [p.tokens for p in probe.short_prompts(prompts, 2)] == [tuple(range(1, 33)), tuple(range(1, 49))]
    assert [len(p.tokens) for p in probe.short_prompts([replace(p, tokens=(7, 8)) for p in prompts], 2)] == [1, 2]
    assert [p.tokens for p in probe.short_prompts([replace(prompts[0], tokens=(7,))], 1)] == [(7,)]
