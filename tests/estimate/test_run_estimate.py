"""The estimate printed before step 1, against hand computation and a model that is really built."""

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console
from transformers import BloomConfig, LlamaConfig, LlamaForCausalLM, OPTConfig, Qwen2Config, Qwen2ForCausalLM

from rlhf_pg import config
from rlhf_pg.config import contradictions
from rlhf_pg.estimate.layout import Layout
from rlhf_pg.estimate.memory import process_memory
from rlhf_pg.estimate.microbatch import UNKNOWN_POSITIONS, microbatch_positions, suitable_positions
from rlhf_pg.estimate.model_size import UnknownShape, size_of, sizes_of
from rlhf_pg.estimate.run_estimate import estimate_run
from rlhf_pg.estimate.share import rows_at_once
from rlhf_pg.estimate.tables import count_text, gib, memory_text, seconds, show_run
from rlhf_pg.training import setup
from tests.training import small_run

TINY: dict[str, Any] = dict(
    vocab_size=50,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
)


def recipe(**sections):
    mapping = {
        "run": {"dir": "runs/x", "steps": 10},
        "model": {"path": "tiny"},
        "data": {"train": {"task": "arithmetic"}, "max_prompt_tokens": 20},
        "rollout": {"prompts_per_step": 6, "samples_per_prompt": 4, "max_new_tokens": 10, "slots": 5},
        "rewards": [{"fn": "gsm8k"}],
    }
    for name, section in sections.items():
        mapping[name] = {**mapping.get(name, {}), **section}
    written = config.Recipe.model_validate(mapping)
    algorithm, _ = contradictions.bind_algorithm(written.algorithm)
    assert algorithm is not None
    return config.ResolvedRecipe.of(written, algorithm, config.Launch())


@pytest.mark.parametrize("tied", [True, False])
def test_parameter_count_equals_a_really_built_qwen2(tied):
    shape = Qwen2Config(**TINY, tie_word_embeddings=tied)
    built = sum(p.numel() for p in Qwen2ForCausalLM(shape).parameters())
    assert (size_of(shape).parameters, size_of(shape).trainable) == (built, built)


def test_size_by_hand_for_llama():
    shape = LlamaConfig(**TINY, tie_word_embeddings=False)
    attention = 32 * 32 + 2 * 32 * 16 + 32 * 32
    by_hand = 50 * 32 + 3 * (attention + 3 * 32 * 64 + 2 * 32) + 32 + 50 * 32
    size = size_of(shape)
    assert (size.parameters, size.trainable, size.largest_tensor) == (by_hand, by_hand, 32 * 64)
    assert sum(p.numel() for p in LlamaForCausalLM(shape).parameters()) == by_hand
    assert (size.linear, size.head) == (3 * (attention + 3 * 32 * 64), 50 * 32)
    assert (size.layer_parameters, size.layers) == (attention + 3 * 32 * 64 + 2 * 32, 3)
    assert (size.query_width, size.key_value_width) == (32, 32)


def test_lora_trains_rank_times_in_plus_out_of_every_linear_layer():
    shape = Qwen2Config(**TINY)
    per_layer = 2 * (32 + 32) + 2 * (32 + 16) + 2 * (32 + 64) + (64 + 32)  # q o, k v, gate up, down
    whole, adapted = size_of(shape), size_of(shape, config.Lora(rank=2))
    assert (adapted.parameters - whole.parameters, adapted.trainable) == (3 * 2 * per_layer, 3 * 2 * per_layer)
    assert (adapted.adapters, adapted.adapter_width) == (3 * 2 * per_layer, 7 * 2)
    assert adapted.linear == whole.linear


def test_a_critic_of_its_own_has_no_use_for_a_head_and_one_on_the_policy_is_no_model():
    ppo = {"algorithm": {"name": "ppo"}, "kl": {"coefficient": 0.1, "placement": "reward", "estimator": "k1"}}
    shape = LlamaConfig(**TINY, tie_word_embeddings=False)
    policy, critic = sizes_of(recipe(**ppo), shape)
    assert critic and policy.parameters - critic.parameters == policy.trainable - critic.trainable == 50 * 32
    assert sizes_of(recipe(**ppo, critic={"backbone": "policy"}), shape)[1] is None
    assert sizes_of(recipe(), shape)[1] is None


def test_rows_steps_and_tokens_multiply_out():
    estimate = estimate_run(recipe(update={"epochs": 2, "minibatches": 3}), Qwen2Config(**TINY))
    assert (estimate.share.rows, estimate.updates, estimate.optimizer_steps) == (24, 6, 60)
    assert (estimate.total_samples, estimate.total_tokens) == (240, 2400)


def test_shown_plan_names_rows_steps_and_every_part_of_memory():
    out = io.StringIO()
    estimate = estimate_run(recipe(), Qwen2Config(**TINY))
    show_run(estimate, Console(file=out, width=100))
    text = out.getvalue()
    assert "6 prompts x 4 samples = 24" in text
    assert "10 rollout steps x 1 = 10" in text
    assert f"{count_text(estimate.size.parameters)}, all trained" in text
    assert all(part.name in text for part in estimate.memory.parts)
    assert text.split("\n")[-2].split()[:2] == ["peak", gib(estimate.memory.peak, unit=False)]
    assert memory_text(estimate.memory) == f"{gib(estimate.memory.peak)} at the most, in its {estimate.memory.phase}"


def test_a_run_of_several_processes_is_estimated_as_it_was_launched():
    one = estimate_run(recipe(), Qwen2Config(**TINY))
    given = replace(recipe(), launch=config.Launch(processes=4, zero_stage=2))
    four = estimate_run(given, Qwen2Config(**TINY), problems=10)
    assert (four.share.prompts, four.share.problems, four.layout.name) == (2, 3, "ZeRO-2")  # 6 and 10 over 4
    assert (four.rows, four.total_samples) == (one.rows, one.total_samples) == (24, 240)
    state = {part.name: part.size for part in four.memory.parts}
    assert state["Adam state"] == 8 * one.size.parameters // 4
    expected = process_memory(four.share, one.size, layout=Layout("ZeRO-2", 4, 2))
    assert four.memory == expected


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0.00 GiB"),
        (1536, "<0.01 GiB"),
        (300_000_000, "0.28 GiB"),
        (3 * 2**30, "3.00 GiB"),
        (31.24 * 2**30, "31.2 GiB"),
        (2**41, "2,048 GiB"),
    ],
)
def test_every_memory_is_shown_in_gib(size, text):
    assert gib(size) == text
    assert gib(size, unit=False) == text.removesuffix(" GiB")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.0001, "<0.001"), (0.0134, "0.013"), (0.216, "0.22"), (8.13, "8.1"), (42.2, "42"), (1234.5, "1,234")],
)
def test_seconds_have_two_digits_or_so(value, text):
    assert seconds(value) == text


@pytest.mark.parametrize(
    ("number", "text"), [(999, "999"), (1234, "1.23 K"), (494_032_768, "494 M"), (7.6e9, "7.60 B")]
)
def test_counts_in_human_units(number, text):
    assert count_text(number) == text


def test_on_a_cpu_a_micro_batch_is_what_a_quarter_of_a_gigabyte_of_activations_holds():
    per_token = 3 * (6 * 32 + 2 * 16 + 3 * 64) * 4  # bytes
    small = microbatch_positions(recipe(), Qwen2Config(**TINY))
    assert small == min(16384, 2**28 // per_token) == 16384
    wide, huge = Qwen2Config(**TINY), Qwen2Config(**TINY)
    wide.intermediate_size, huge.intermediate_size = 5_000, 10**5
    expected = 2**28 // (3 * (6 * 32 + 2 * 16 + 3 * 5_000) * 4)
    assert 512 < expected < 16384
    assert microbatch_positions(recipe(), wide) == expected
    assert microbatch_positions(recipe(), huge) == 512


def test_a_micro_batch_that_the_recipe_names_stays():
    named = recipe(update={"tokens_per_microbatch": 77})
    assert microbatch_positions(named, Qwen2Config(**TINY)) == 77


@pytest.mark.parametrize(
    ("slots", "problems", "rows"),
    [(1000, 0, 24), (1000, 3, 24), (1000, 4, 32), (16, 4, 16), (1000, None, 1000)],
)
def test_an_engine_has_slots_for_the_rows_of_a_step_or_an_evaluation(slots, problems, rows):
    assert rows_at_once(recipe(rollout={"slots": slots}), 6, problems) == rows  # 6 x 4, and 8 samples of a problem


def test_the_shown_cache_of_a_run_is_that_of_what_was_read(tmp_path):
    held_out = {"task": "arithmetic", "options": {"count": 2}}
    data = {"train": {"task": "arithmetic", "options": {"count": 8}}, "eval": held_out}
    rollout = {"prompts_per_step": 2, "samples_per_prompt": 2, "max_new_tokens": 4, "slots": 256}
    session = setup.build(small_run.recipe(tmp_path, data=data, rollout=rollout, eval={"samples": 3, "k": [1]}))
    try:
        assert session.estimate
        cache = next(part.size for part in session.estimate.memory.parts if part.name == "rollout: KV cache")
        longest = max(len(prompt.tokens) for prompt in session.eval_prompts)
        heads = 2 * 128 // 4  # keys and values: 2 of 4 heads share hidden size 128
        assert cache == 2 * 3 * (longest + 4) * 2 * 2 * heads * 4  # rows, tokens, layers, keys and values, float32
        assert session.engine.slots == 6  # pyright: ignore[reportAttributeAccessIssue]
    finally:
        session.close()


@pytest.mark.parametrize(
    "shape",
    [
        OPTConfig(hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=50),
        BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=50),
    ],
    ids=lambda shape: shape.model_type,
)
def test_a_model_of_unknown_shape_has_no_estimate_and_a_micro_batch_all_the_same(shape):
    with pytest.raises(UnknownShape, match=shape.model_type):
        estimate_run(recipe(), shape)
    assert microbatch_positions(recipe(), shape) == UNKNOWN_POSITIONS
    assert suitable_positions(shape, recipe().model) == UNKNOWN_POSITIONS
    assert microbatch_positions(recipe(update={"tokens_per_microbatch": 77}), shape) == 77
