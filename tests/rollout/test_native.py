"""The native engine keeps the engine contract, and its own promises about memory, work and the model it borrows."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    JambaConfig,
    MambaConfig,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    Qwen3ForCausalLM,
    RobertaConfig,
    Starcoder2Config,
)

from rlhf_pg.rollout.cache import SlotCache
from rlhf_pg.rollout.llama_decode import LlamaDecode
from rlhf_pg.rollout.native import NativeEngine, _Generation
from rlhf_pg.types import Prompt, Sampling
from tests.random_models import SHAPE, random_model
from tests.rollout.contract import (
    EOS,
    SAMPLING,
    EngineContract,
    assert_log_probs,
    full_forward_logp,
    ragged_prompts,
    tokens_of,
)
from tests.tolerance import AS_GOOD_AS


class TestNativeContract(EngineContract):
    def build(self, model, eos_ids):
        return NativeEngine(model, eos_ids, slots=64)


class TestNativeContractInFewSlots(EngineContract):
    """Fewer slots than a group: everything is refilled and every group enters in parts."""

    @pytest.fixture
    def model(self):
        return random_model()

    def build(self, model, eos_ids):
        return NativeEngine(model, eos_ids, slots=3 if len(eos_ids) > 1 else 500)


class Forwards:
    """Counts what a model is given: (rows, columns) of each forward, lean decode steps among them."""

    def __init__(self, model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shapes: list[tuple[int, int]] = []
        self.prompts: list[int] = []
        model.register_forward_pre_hook(self.note, with_kwargs=True)
        step = LlamaDecode.__call__
        monkeypatch.setattr(
            LlamaDecode, "__call__", lambda s, tokens, *rest: self.count(tokens) or step(s, tokens, *rest)
        )

    def note(self, module, args, kwargs):
        self.shapes.append(tuple(kwargs["input_ids"].shape))
        if "logits_to_keep" in kwargs:
            self.prompts.append(len(kwargs["input_ids"]))

    def count(self, tokens):
        self.shapes.append((len(tokens), 1))

    @property
    def decoded(self) -> int:
        return sum(rows for rows, _ in self.shapes) - sum(self.prompts)


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_tokens_do_not_depend_on_the_number_of_slots(kind):
    model = random_model(kind).double()  # rounding differs with the batch: in fp64 too little to reach a token
    runs = [NativeEngine(model, EOS, slots).generate(ragged_prompts(9), SAMPLING) for slots in (1, 3, 7, 64)]
    assert all(tokens_of(run) == tokens_of(runs[0]) for run in runs[1:])
    assert sum(len(row) for group in tokens_of(runs[0]) for row in group) > 150


@pytest.mark.parametrize(("slots", "prefills"), [(1, 36), (3, 18), (4, 9), (7, 9), (64, 9)])
def test_rows_stay_within_slots_prompts_are_prefilled_once_and_finished_rows_are_not_decoded(
    slots, prefills, monkeypatch
):
    model = random_model()
    forwards = Forwards(model, monkeypatch)
    groups = NativeEngine(model, EOS, slots).generate(ragged_prompts(9), SAMPLING)
    lengths = [len(c.tokens) for group in groups for c in group]
    assert max(rows for rows, _ in forwards.shapes) <= slots
    assert sum(forwards.prompts) == prefills  # 9 prompts of 4 samples; split groups are prefilled once per part
    assert forwards.decoded == sum(lengths) - len(lengths)  # the first token of a row comes from its prompt's prefill
    assert len(set(lengths)) > 3


def test_slots_are_refilled_while_others_are_in_use(monkeypatch):
    model = random_model()
    forwards = Forwards(model, monkeypatch)
    prompts = sorted(ragged_prompts(24), key=lambda prompt: -len(prompt.tokens))  # the order they enter in
    groups = NativeEngine(model, EOS, slots=4).generate(prompts, replace(SAMPLING, samples=1))
    lengths = [len(group[0].tokens) for group in groups]
    steps = len(forwards.shapes) - len(forwards.prompts)
    assert steps < sum(max(lengths[i : i + 4]) - 1 for i in range(0, 24, 4))  # four at a time, waiting for the longest
    assert steps < 1.25 * (sum(lengths) - 24) / 4 + 9  # nearly always four rows at once, but for the end


def test_a_row_is_handed_out_at_the_step_that_finished_it_and_nothing_is_read_at_other_steps(monkeypatch):
    steps, at, reads, read_out = [], {}, [], _Generation._read_out

    def counted(self, rows):
        reads.append(len(rows))
        read_out(self, rows)

    def finished(prompt, sample, completion):
        at[prompt, sample] = len(steps), len(completion.tokens)

    monkeypatch.setattr(_Generation, "_read_out", counted)
    sampling = replace(SAMPLING, samples=1, max_new_tokens=20)
    engine = NativeEngine(random_model(), EOS, slots=64)  # all rows begin at step 0
    engine.generate(ragged_prompts(), sampling, lambda *place: steps.append(place), finished)
    assert all(step == length - 1 for step, length in at.values())
    assert sum(reads) == len(at) == 6
    assert 1 < len(reads) == len({length for _, length in at.values()}) < len(steps)


def test_one_cache_serves_a_call_in_the_models_dtype_and_ends_with_it(monkeypatch):
    made: list[tuple[tuple[int, ...], torch.dtype, weakref.ref]] = []
    init = SlotCache.__init__

    def note(self, *given):
        init(self, *given)
        made.append((tuple(self.keys.shape), self.keys.dtype, weakref.ref(self)))

    monkeypatch.setattr(SlotCache, "__init__", note)
    model = random_model()
    engine = NativeEngine(model, EOS, slots=8)
    engine.generate(ragged_prompts(6), replace(SAMPLING, max_new_tokens=40))  # more rows than slots
    model.bfloat16()
    engine.generate(ragged_prompts(3), SAMPLING)
    (shape, kind, first), (_, other, second) = made
    longest = max(len(prompt.tokens) for prompt in ragged_prompts(6))
    assert shape == (2, 8, 2, longest + 40, 8)  # layers, slots, heads, columns, head size
    assert (kind, other) == (torch.float32, torch.bfloat16)
    assert first() is None and second() is None


class Unit(nn.Module):
    """A submodule left in evaluation mode inside a model in training mode."""


def trainable_model():
    model = random_model("llama", attention_dropout=0.5)
    model.add_module("frozen", Unit())
    model.train()
    model.get_submodule("frozen").eval()
    model.get_submodule("model.layers.0.mlp").eval()
    model.lm_head.weight.requires_grad_(False)
    return model


@pytest.mark.parametrize("fail", [False, True])
def test_modes_dtypes_gradient_flags_and_random_state_are_left_alone(fail):
    model = trainable_model()

    def picture():
        modes = {name: module.training for name, module in model.named_modules()}
        flags = {n: (p.dtype, p.requires_grad, p.grad is None, p._version) for n, p in model.named_parameters()}
        return modes, flags, torch.get_rng_state().tolist(), torch.is_grad_enabled()

    def leave(*place):
        assert not any(module.training for module in model.modules())
        if fail:
            raise KeyboardInterrupt

    before = picture()
    try:
        NativeEngine(model, EOS).generate(ragged_prompts(), SAMPLING, leave)
    except KeyboardInterrupt:
        assert fail
    assert picture() == before


def test_dropout_and_checkpointing_of_a_model_in_training_do_not_reach_the_samples():
    prompts = ragged_prompts()
    plain = NativeEngine(random_model("llama").eval(), EOS).generate(prompts, SAMPLING)
    model = trainable_model()
    model.gradient_checkpointing_enable()
    groups = NativeEngine(model, EOS).generate(prompts, SAMPLING)
    assert tokens_of(groups) == tokens_of(plain)


def test_completions_can_be_used_under_autograd_and_the_model_trained_afterwards():
    model = random_model().train()
    prompt = ragged_prompts(1)[0]
    completion = NativeEngine(model, EOS).generate([prompt], SAMPLING)[0][0]
    scale = torch.ones((), requires_grad=True)
    (scale * completion.logp).sum().backward()
    assert scale.grad is not None and not completion.tokens.is_inference()
    context = torch.tensor([[*prompt.tokens, *completion.tokens.tolist()]])
    model(context).logits.logsumexp(-1).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(("kind", "attention"), [("qwen2", "eager"), ("llama", "eager"), ("qwen2", "masked")])
def test_every_way_to_mask_gives_the_same_samples(kind, attention):
    model = random_model(kind).double()
    expected = NativeEngine(model, EOS, slots=7).generate(ragged_prompts(9), SAMPLING)
    engine = NativeEngine(model, EOS, slots=7)
    assert engine.attention and engine.attention.as_bias
    if attention == "eager":
        model.set_attn_implementation("eager")
        engine = NativeEngine(model, EOS, slots=7)
    else:
        assert engine.attention
        engine.attention.as_bias = False  # what other devices and architectures use
    assert engine.attention and not engine.attention.as_bias
    assert tokens_of(engine.generate(ragged_prompts(9), SAMPLING)) == tokens_of(expected)


def test_a_two_dimensional_mask_as_flash_attention_takes_it_gives_the_same_samples():
    model = random_model().double()
    expected = NativeEngine(model, EOS, slots=7).generate(ragged_prompts(9), SAMPLING)
    engine = NativeEngine(model, EOS, slots=7)
    assert engine.attention
    engine.attention.kind = "flash_attention_2"  # only the arguments: the model itself still computes with sdpa
    assert tokens_of(engine.generate(ragged_prompts(9), SAMPLING)) == tokens_of(expected)


def test_bfloat16_log_probs_are_near_a_bfloat16_full_forward():
    model = random_model().bfloat16()
    prompts = ragged_prompts()
    groups = NativeEngine(model, EOS).generate(prompts, SAMPLING)
    assert all(completion.logp.dtype == torch.float32 for group in groups for completion in group)
    assert_log_probs(model, prompts, groups)


SMALL: dict[str, Any] = SHAPE | dict(vocab_size=23, max_position_embeddings=128)
RECURRENT: dict[str, Any] = dict(
    num_experts=2, mamba_d_state=4, mamba_dt_rank=4, use_mamba_kernels=False, attn_layer_period=2, attn_layer_offset=1
)


def with_noise(config) -> Any:
    """A model whose random weights are large enough to tell distributions apart."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            parameter.data.add_(0.15 * torch.randn_like(parameter))
    return model


def assert_near_own_log_probs(model, prompts, groups):
    """In float32, where all these models compute: each row alone, from the model's own logits."""
    for prompt, group in zip(prompts, groups, strict=True):
        for c in group:
            ids = torch.cat([torch.tensor(prompt.tokens), c.tokens])[None]
            with torch.no_grad():
                logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt.tokens) - 1 : -1]
            logp = (logits / SAMPLING.temperature).log_softmax(dim=-1).gather(1, c.tokens[:, None])[:, 0]
            assert float((logp - c.logp).abs().max()) < 2e-5


def other_models() -> Iterator[Any]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shape: dict[str, Any] = SHAPE | dict(vocab_size=23, max_position_embeddings=128)
        yield Qwen3ForCausalLM(Qwen3Config(**shape, head_dim=16))
        yield MistralForCausalLM(MistralConfig(**shape, sliding_window=20))
        adapted = get_peft_model(random_model(), LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.5))
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.3)
        yield adapted


@pytest.mark.parametrize("model", other_models(), ids=["qwen3", "mistral", "peft-qwen2"])
def test_other_models_and_adapters_log_probs_are_those_of_their_own_forward(model):
    prompts = ragged_prompts()
    groups = NativeEngine(model, EOS, slots=7).generate(prompts, SAMPLING)
    model.eval()
    assert_log_probs(model, prompts, groups)


MIXED: dict[str, Any] = dict(layer_types=["sliding_attention", "full_attention"], sliding_window=5)


@pytest.mark.parametrize(
    "config",
    [
        MistralConfig(**SMALL, sliding_window=5),
        Qwen2Config(**SMALL, use_sliding_window=True, **MIXED),
        Gemma2Config(**SMALL, head_dim=8, query_pre_attn_scalar=3, **MIXED),
        Gemma3TextConfig(**SMALL, head_dim=8, query_pre_attn_scalar=3, **MIXED),
        Phi3Config(**SMALL, sliding_window=5, pad_token_id=0),
        Starcoder2Config(**SMALL, sliding_window=5),
    ],
    ids=lambda config: config.model_type,
)
def test_rows_longer_than_a_sliding_window_have_the_models_own_log_probs(config):
    model = with_noise(config)
    engine = NativeEngine(model, EOS, slots=7)
    assert engine.uncached == ""
    prompts = [*ragged_prompts(), Prompt("long", "", tuple(range(2, 20)))]
    groups = engine.generate(prompts, SAMPLING)
    assert max(len(c.tokens) for group in groups for c in group) > 5
    assert_near_own_log_probs(model.eval(), prompts, groups)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (JambaConfig(**SMALL, **RECURRENT), "layers of other kinds"),
        (MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=4, vocab_size=23, time_step_rank=4), ""),
        (RobertaConfig(**SMALL, is_decoder=True, pad_token_id=1), "off by"),  # positions begin after the padding's
    ],
    ids=lambda x: getattr(x, "model_type", ""),
)
def test_a_model_that_the_cache_does_not_serve_has_its_rows_forwarded_whole_and_its_own_log_probs(config, why):
    model = with_noise(config)
    engine = NativeEngine(model, EOS, slots=7)
    assert why in engine.uncached and engine.uncached
    prompts = ragged_prompts()
    assert_near_own_log_probs(model.eval(), prompts, engine.generate(prompts, SAMPLING))


def test_whole_rows_give_the_samples_of_cached_ones():
    model = random_model().double()
    expected = NativeEngine(model, EOS, slots=7).generate(ragged_prompts(9), SAMPLING)
    engine = NativeEngine(model, EOS, slots=7)
    engine.attention = None
    assert tokens_of(engine.generate(ragged_prompts(9), SAMPLING)) == tokens_of(expected)


def test_what_no_engine_could_do_is_refused():
    with pytest.raises(ValueError, match="slots"):
        NativeEngine(random_model(), EOS, slots=0)
    with pytest.raises(ValueError, match="eos_ids"):
        NativeEngine(random_model(), [])


def test_diverged_weights_are_an_error_and_leave_nothing_behind():
    model = random_model("llama")
    engine = NativeEngine(model, EOS)
    expected = tokens_of(engine.generate(ragged_prompts(), SAMPLING))
    good = model.model.layers[0].mlp.down_proj.weight.detach().clone()
    name = "model.layers.0.mlp.down_proj.weight"
    engine.load_weights([(name, torch.full_like(good, torch.nan))], version=1)
    long = Prompt("long", "", (6,) * 60)  # its keys would stand beside those of the shorter rows that come next
    with pytest.raises(FloatingPointError, match="not finite"):
        engine.generate([long] * 6, SAMPLING)
    engine.load_weights([(name, good)], version=2)
    assert tokens_of(engine.generate(ragged_prompts(), SAMPLING)) == expected


def test_loaded_weights_land_in_the_live_parameters_in_their_own_dtype():
    model = random_model().bfloat16()
    weight = model.model.layers[0].mlp.up_proj.weight
    new = torch.randn(weight.shape)
    NativeEngine(model, EOS).load_weights([("model.layers.0.mlp.up_proj.weight", new)], version=1)
    assert weight.dtype == torch.bfloat16 and weight.requires_grad and torch.equal(weight, new.bfloat16())


def test_sampling_in_chunks_of_rows_changes_nothing(monkeypatch):
    model = random_model().double()
    expected = NativeEngine(model, EOS).generate(ragged_prompts(), Sampling(3, 8))
    monkeypatch.setattr("rlhf_pg.rollout.native.CHOOSE_ELEMENTS", 5 * 23)
    assert tokens_of(NativeEngine(model, EOS).generate(ragged_prompts(), Sampling(3, 8))) == tokens_of(expected)


@pytest.mark.parametrize("kind", ["qwen2", "llama", "qwen3", "mistral", "adapter"])
def test_the_lean_decode_step_is_the_models_own(kind):
    """In float64, where rounding cannot reach a token; transformers' RMSNorm rounds to float32 in between."""
    if kind == "qwen3":
        model = Qwen3ForCausalLM(Qwen3Config(**SHAPE, vocab_size=23, head_dim=12, max_position_embeddings=128))
    elif kind == "mistral":
        config = MistralConfig(**SHAPE, vocab_size=23, max_position_embeddings=128, sliding_window=None)
        model = MistralForCausalLM(config)
    else:
        model = random_model("llama" if kind == "llama" else "qwen2")
    for name, parameter in model.named_parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
    if kind == "adapter":
        model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    engine = NativeEngine(model.double(), EOS, slots=9)  # pyright: ignore[reportArgumentType]
    assert engine.llama_decode
    found = engine.generate(ragged_prompts(), SAMPLING)
    engine.llama_decode = False
    expected = engine.generate(ragged_prompts(), SAMPLING)
    assert tokens_of(found) == tokens_of(expected)
    for groups in (found, expected):
        assert_log_probs(model, ragged_prompts(), groups)


@pytest.mark.parametrize("kind", ["qwen2", "llama", "qwen3", "adapter"])
def test_under_autocast_the_lean_decode_step_rounds_as_much_as_the_model_does(kind):
    model: Any
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "qwen3":
            model = Qwen3ForCausalLM(Qwen3Config(**SHAPE, vocab_size=23, head_dim=12, max_position_embeddings=128))
        else:
            model = random_model("llama" if kind == "llama" else "qwen2")
        if kind == "adapter":
            model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    engine = NativeEngine(model, EOS, slots=9)
    assert engine.llama_decode
    sampling = replace(SAMPLING, samples=16)  # some 800 tokens, so that the mean of their errors is no accident
    with torch.autocast("cpu", dtype=torch.bfloat16):
        groups = engine.generate(ragged_prompts(), sampling)
    errors, usual = [], []
    for prompt, group in zip(ragged_prompts(), groups, strict=True):
        for completion in group:
            exact = full_forward_logp(model, prompt, completion.tokens, SAMPLING.temperature)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                rounded = full_forward_logp(model, prompt, completion.tokens, SAMPLING.temperature).float()
            errors.append((completion.logp - exact).abs())
            usual.append((rounded - exact).abs())
    found, own = torch.cat(errors), torch.cat(usual)
    assert 1e-4 < own.mean() < 0.05  # it does round
    assert found.mean() < 1.3 * own.mean() and found.max() < AS_GOOD_AS * own.max()


def test_under_autocast_no_decode_step_casts_a_weight():
    model = random_model()
    shapes = {p.shape for p in model.parameters() if p.dim() == 2}

    class Casts(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten._to_copy.default and args[0].shape in shapes and args[0].requires_grad:
                self.seen += 1
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16), Casts() as casts:
        steps = LlamaDecode(model, 3)
        made = casts.seen
        block = torch.zeros(1, 2, 1, 8, dtype=torch.bfloat16)
        prefilled = [(block, block), (block, block)]
        cache = SlotCache(prefilled, slots=3, length=4)
        for column in range(3):
            position = torch.full((3,), column)
            cache.aim(position, column + 1)
            logits = steps(torch.tensor([5, 6, 7]), position, cache, None)
    assert logits.shape == (3, 23) and logits.dtype == torch.bfloat16
    assert made == casts.seen


def test_models_that_the_lean_step_does_not_know_decode_by_their_own_forward():
    eager = random_model()
    eager.set_attn_implementation("eager")
    assert not NativeEngine(eager, EOS).llama_decode
