"""The plan printed before step 1, against hand computation and a model that is really built."""

import io
from typing import Any

import pytest
from rich.console import Console
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from rlhf_pg import config
from rlhf_pg.functional.logprobs import CHUNK_LOGITS
from rlhf_pg.train.plan import bytes_text, count_parameters, count_text, plan, settled, show

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
    return config.Recipe.model_validate(mapping)


@pytest.mark.parametrize("tied", [True, False])
def test_parameter_count_equals_a_really_built_qwen2(tied):
    shape = Qwen2Config(**TINY, tie_word_embeddings=tied)
    built = sum(p.numel() for p in Qwen2ForCausalLM(shape).parameters())
    assert count_parameters(shape) == (built, built)


def test_parameter_count_by_hand_for_llama():
    shape = LlamaConfig(**TINY, tie_word_embeddings=False)
    attention = 32 * 32 + 2 * 32 * 16 + 32 * 32
    by_hand = 50 * 32 + 3 * (attention + 3 * 32 * 64 + 2 * 32) + 32 + 50 * 32
    assert count_parameters(shape) == (by_hand, by_hand)
    assert sum(p.numel() for p in LlamaForCausalLM(shape).parameters()) == by_hand


def test_lora_trains_rank_times_in_plus_out_of_every_linear_layer():
    shape = Qwen2Config(**TINY)
    per_layer = 2 * (32 + 32) + 2 * (32 + 16) + 2 * (32 + 64) + (64 + 32)  # q o, k v, gate up, down
    whole = count_parameters(shape)[0]
    assert count_parameters(shape, config.Lora(rank=2)) == (whole + 3 * 2 * per_layer, 3 * 2 * per_layer)


def test_rows_steps_and_tokens_multiply_out():
    made = plan(recipe(update={"epochs": 2, "minibatches": 3}), Qwen2Config(**TINY), parameters=1)
    assert (made.rows, made.updates, made.optimizer_steps) == (24, 6, 60)
    assert (made.total_samples, made.total_tokens) == (240, 2400)


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (60, 6),  # one group is 20 + 4 * 10 = 60 positions
        (119, 6),
        (120, 3),
        (360, 1),
        (40, 12),  # half a group at a time: 20 + 2 * 10
        (1, 24),  # one row is the least
    ],
)
def test_micro_batches_follow_the_token_budget(budget, expected):
    made = plan(recipe(update={"tokens_per_microbatch": budget}), Qwen2Config(**TINY), parameters=1)
    assert made.micro_batches == expected


def test_overlap_holds_the_weights_once_more():
    alone = plan(recipe(), Qwen2Config(**TINY), parameters=1000)
    both = plan(recipe(rollout={"overlap": True}), Qwen2Config(**TINY), parameters=1000)
    assert sum(both.memory.values()) - sum(alone.memory.values()) == 1000 * 4


def test_kv_cache_bytes_by_hand():
    made = plan(recipe(), Qwen2Config(**TINY), parameters=1)
    assert made.memory["rollout: KV cache"] == 5 * (20 + 10) * 3 * 2 * (2 * 8) * 4  # slots, tokens, layers, K+V, heads
    halved = plan(recipe(model={"path": "tiny", "dtype": "bfloat16"}), Qwen2Config(**TINY), parameters=1)
    assert halved.memory["rollout: KV cache"] == made.memory["rollout: KV cache"] // 2


def test_kv_cache_counts_no_more_rows_than_there_are():
    many = plan(recipe(rollout={"slots": 1000}), Qwen2Config(**TINY), parameters=1)
    assert many.memory["rollout: KV cache"] == 24 * 30 * 3 * 2 * 16 * 4


def test_weights_gradients_adam_and_reference_are_4_4_8_and_4_bytes_a_parameter():
    made = plan(recipe(), Qwen2Config(**TINY), parameters=1000)
    parts = [made.memory[name] for name in ("weights", "gradients", "Adam state", "reference copy")]
    assert parts == [4000, 4000, 8000, 4000]


def test_no_reference_copy_without_kl_or_with_lora():
    shape = Qwen2Config(**TINY)
    assert "reference copy" not in plan(recipe(kl={"coefficient": 0}), shape, parameters=1000).memory
    assert "reference copy" not in plan(recipe(model={"lora": {"rank": 2}}), shape).memory


def test_checkpointing_keeps_one_number_per_hidden_unit_and_layer():
    switched = {"model": {"gradient_checkpointing": True}, "update": {"share_prompts": False}}
    made = plan(recipe(**switched), Qwen2Config(**TINY), parameters=1)
    one_layer = 7 * 32 + 2 * 16 + 4 * 64
    assert made.memory["update: activations"] == 24 * (20 + 10) * (3 * 32 + one_layer) * 4  # prompts not shared


def test_activations_are_those_of_the_largest_micro_batch():
    per_token = 3 * (7 * 32 + 2 * 16 + 4 * 64) * 4
    whole = plan(recipe(), Qwen2Config(**TINY), parameters=1)
    assert whole.memory["update: activations"] == (6 * 20 + 24 * 10) * per_token  # everything fits
    two_groups = plan(recipe(update={"tokens_per_microbatch": 130}), Qwen2Config(**TINY), parameters=1)
    assert two_groups.memory["update: activations"] == 2 * (20 + 4 * 10) * per_token
    half_a_group = plan(recipe(update={"tokens_per_microbatch": 45}), Qwen2Config(**TINY), parameters=1)
    assert half_a_group.memory["update: activations"] == (20 + 2 * 10) * per_token


def test_logits_of_completion_tokens_only_and_of_one_chunk_at_most():
    made = plan(recipe(), Qwen2Config(**TINY), parameters=1)
    assert made.memory["update: logits chunk"] == 24 * 10 * 50 * 3 * 4
    large = plan(recipe(), Qwen2Config(**{**TINY, "vocab_size": 2**20}), parameters=1)
    assert large.memory["update: logits chunk"] == CHUNK_LOGITS * 3 * 4


def test_a_measured_longest_prompt_replaces_the_limit():
    made = plan(recipe(), Qwen2Config(**TINY), parameters=1, longest_prompt=2)
    assert made.memory["rollout: KV cache"] == 5 * (2 + 10) * 3 * 2 * 16 * 4


def test_shown_plan_names_rows_steps_and_every_part_of_memory():
    out = io.StringIO()
    made = plan(recipe(), Qwen2Config(**TINY), parameters=2_500_000)
    show(made, Console(file=out, width=100))
    text = out.getvalue()
    assert "6 prompts x 4 samples = 24" in text
    assert "10 rollout steps x 1 = 10" in text
    assert "2.5 M, all trained" in text
    assert "9.54 MiB" in text  # 2.5e6 * 4 / 2**20
    assert all(name in text for name in made.memory)


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (1536, "1.5 KiB"), (1023, "1023 B"), (3 * 2**30, "3 GiB"), (2**41, "2.0 TiB")]
)
def test_bytes_in_human_units(size, text):
    assert bytes_text(size) == text


@pytest.mark.parametrize(
    ("number", "text"), [(999, "999"), (1234, "1.23 K"), (494_032_768, "494 M"), (7.6e9, "7.60 B")]
)
def test_counts_in_human_units(number, text):
    assert count_text(number) == text


def test_on_a_cpu_a_micro_batch_is_what_a_quarter_of_a_gigabyte_of_activations_holds():
    per_token = 3 * (7 * 32 + 2 * 16 + 4 * 64) * 4  # bytes
    small = settled(recipe(), Qwen2Config(**TINY))
    assert small.update.tokens_per_microbatch == min(16384, 2**28 // per_token) == 16384
    wide, huge = Qwen2Config(**TINY), Qwen2Config(**TINY)
    wide.intermediate_size, huge.intermediate_size = 5_000, 10**6
    expected = 2**28 // (3 * (7 * 32 + 2 * 16 + 4 * 5_000) * 4)
    assert 512 < expected < 16384
    assert settled(recipe(), wide).update.tokens_per_microbatch == expected
    assert settled(recipe(), huge).update.tokens_per_microbatch == 512


def test_a_micro_batch_that_the_recipe_names_stays():
    named = recipe(update={"tokens_per_microbatch": 77})
    assert settled(named, Qwen2Config(**TINY)).update.tokens_per_microbatch == 77
