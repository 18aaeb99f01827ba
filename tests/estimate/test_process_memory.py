"""What takes memory in training, part by part by hand, and the peak against real steps."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import Qwen2Config

from rlhf_pg import config
from rlhf_pg.estimate.layout import ONE_PROCESS, Layout
from rlhf_pg.estimate.memory import Memory, Part, activations_per_position, largest_budget, process_memory
from rlhf_pg.estimate.model_size import sizes_of
from rlhf_pg.estimate.share import Share
from rlhf_pg.functional.logprobs import CHUNK_LOGITS
from rlhf_pg.models.export import save_model
from rlhf_pg.models.load import tiny_model
from rlhf_pg.models.tokenizer import character_tokenizer
from tests.estimate.test_run_estimate import TINY, recipe

ROOT = Path(__file__).parents[2]
IN_REWARD = {"coefficient": 0.05, "placement": "reward", "estimator": "k1"}
PPO = {"algorithm": {"name": "ppo"}, "kl": IN_REWARD}
KEPT = 6 * 32 + 2 * 16 + 3 * 64  # numbers a layer keeps per position


def share(given: config.ResolvedRecipe, tokens: int = 10_000, **changes) -> Share:
    return Share(given, 20, given.rollout.prompts_per_step, tokens, **changes)


def of(
    given: config.ResolvedRecipe, tokens: int = 10_000, layout: Layout = ONE_PROCESS, shape=None, **changes
) -> Memory:
    return process_memory(share(given, tokens, **changes), *sizes_of(given, shape or Qwen2Config(**TINY)), layout)


def part(made: Memory, name: str) -> int:
    found = [p.size for p in made.parts if p.name == name]
    return found[0] if found else 0


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (56, 6),  # one group is 20 + 4 * 9 = 56 positions: no row's last token goes in
        (111, 6),
        (112, 3),
        (336, 1),
        (38, 12),  # half a group at a time: 20 + 2 * 9
        (1, 24),  # one row is the least
    ],
)
def test_micro_batches_follow_the_token_budget(tokens, expected):
    assert share(recipe(), tokens).micro_batches == expected


def test_whole_rows_are_budgeted_as_they_are_forwarded():
    plain = share(recipe(update={"share_prompts": False}), 90)  # 30 positions a row
    assert (plain.micro_batch(6), plain.positions(1, 3), plain.micro_batches) == ((1, 3), 90, 8)


def test_weights_gradients_adam_and_reference_are_4_4_8_and_4_bytes_a_parameter():
    made, size = of(recipe()), sizes_of(recipe(), Qwen2Config(**TINY))[0]
    names = ("weights", "gradients", "Adam state", "reference copy")
    assert [part(made, name) for name in names] == [n * size.parameters for n in (4, 4, 8, 4)]
    without = of(recipe(kl={"coefficient": 0}))
    assert part(without, "reference copy") == 0


def test_under_lora_there_is_no_reference_and_only_the_adapter_has_gradients_and_averages():
    given = recipe(model={"lora": {"rank": 2}})
    made, size = of(given), sizes_of(given, Qwen2Config(**TINY))[0]
    assert part(made, "reference copy") == 0
    assert (part(made, "gradients"), part(made, "Adam state")) == (4 * size.trainable, 8 * size.trainable)
    assert part(made, "weights") == 4 * size.parameters


def test_a_critic_has_weights_gradients_averages_and_activations_of_its_own():
    made, (_, critic) = of(recipe(**PPO)), sizes_of(recipe(**PPO), Qwen2Config(**TINY))
    assert critic
    names = ("critic: weights", "critic: gradients", "critic: Adam state")
    assert [part(made, name) for name in names] == [n * critic.parameters for n in (4, 4, 8)]
    assert part(made, "critic: activations") == part(made, "update: activations")


def test_kv_cache_by_hand_counts_no_more_rows_than_there_are_but_those_of_evaluation():
    per_row = (20 + 10) * 3 * 2 * (2 * 8) * 4  # tokens, layers, keys and values, heads, bytes
    assert part(of(recipe()), "rollout: KV cache") == 5 * per_row  # slots
    assert part(of(recipe(rollout={"slots": 1000})), "rollout: KV cache") == 24 * per_row
    evaluated = recipe(rollout={"slots": 1000}, data={"eval": {"task": "arithmetic"}})
    assert part(of(evaluated), "rollout: KV cache") == 1000 * per_row
    halved = of(recipe(model={"path": "tiny", "dtype": "bfloat16"}))
    assert part(halved, "rollout: KV cache") == 5 * per_row // 2


@pytest.mark.parametrize(
    ("source", "rows"),
    [
        ({"task": "arithmetic", "limit": 6}, 6 * 8),  # eval.samples is 8
        ({"task": "arithmetic", "options": {"count": 9}}, 9 * 8),
        ({"task": "arithmetic", "options": {"count": 9}, "limit": 4}, 4 * 8),
        ({"task": "arithmetic", "options": {"count": 2}}, 24),  # those of training are more
        ({"task": "arithmetic"}, 256 * 8),  # as many as a task makes if it is not told
        ({"path": "x.jsonl"}, 5000),  # not known before it is read: all slots
        ({"path": "x.jsonl", "limit": 3}, 24),
    ],
)
def test_the_cache_holds_the_rows_of_training_or_evaluation_whichever_are_more(source, rows):
    per_row = (20 + 10) * 3 * 2 * (2 * 8) * 4
    given = recipe(rollout={"slots": 5000}, data={"eval": source})
    assert part(of(given), "rollout: KV cache") == rows * per_row
    few = recipe(rollout={"slots": 7}, data={"eval": source})
    assert part(of(few), "rollout: KV cache") == 7 * per_row


def test_evaluation_with_longer_completions_is_what_the_cache_is_for():
    evaluated = {"data": {"eval": {"task": "arithmetic", "limit": 2}}, "rollout": {"slots": 5000}}
    per_token = 3 * 2 * (2 * 8) * 4
    longer = recipe(**evaluated, eval={"max_new_tokens": 100})
    assert part(of(longer), "rollout: KV cache") == 2 * 8 * (20 + 100) * per_token  # 24 rows of 30 are fewer tokens
    assert part(of(longer, problems=1, problem_length=50), "rollout: KV cache") == 8 * (50 + 100) * per_token
    assert part(of(longer, problems=0), "rollout: KV cache") == 24 * (20 + 10) * per_token


def test_vllm_allots_whole_blocks_for_all_rows_up_to_its_limit():
    per_token, vllm = 3 * 2 * (2 * 8) * 4, {"engine": "vllm", "slots": 1000}
    row = 128 * 2 * per_token  # 30 tokens fit one block of 128, and one more is kept free
    assert part(of(recipe(rollout=vllm)), "rollout: KV cache") == 24 * row
    limited = recipe(rollout=vllm | {"options": {"cache_gb": 0.5}})
    assert part(of(limited), "rollout: KV cache") == 2**29
    many = recipe(rollout=vllm | {"slots": 10**6, "prompts_per_step": 10**5})
    assert part(of(many), "rollout: KV cache") == 4 * 2**30


def test_activations_are_those_of_the_largest_micro_batch():
    def kept(groups, rows):
        positions = groups * 20 + rows * 9
        return (positions * (3 * KEPT + 32) + rows * 10 * 32) * 4  # the last norm, the states that are scored

    for tokens, groups, rows in ((10_000, 6, 24), (112, 2, 8), (38, 1, 2)):
        assert part(of(recipe(), tokens), "update: activations") == kept(groups, rows)


def test_models_outside_the_llama_family_keep_what_norms_scale_and_the_activation_too():
    given, (size, _) = recipe(), sizes_of(recipe(), Qwen2Config(**TINY))
    more = 3 * (2 * 32 + 64) * 4  # layers; two norms and an MLP
    heavy = replace(size, fused=False)
    assert activations_per_position(heavy, given.model) - activations_per_position(size, given.model) == more


def test_checkpointing_keeps_each_layers_input_and_one_layer_whole():
    made = of(recipe(model={"gradient_checkpointing": True}))
    positions, outside = 6 * 20 + 24 * 9, 24 * 10 * 32
    assert part(made, "update: activations") == (positions * (3 * 32 + KEPT + 32) + outside) * 4


def test_logits_are_of_sampled_tokens_only_and_of_one_chunk_at_most():
    whole = {"rollout": {"max_new_tokens": 10}}
    wide = {**TINY, "vocab_size": 1000}
    assert part(of(recipe(**whole), shape=Qwen2Config(**wide)), "update: logits") == 2 * 24 * 10 * 1000 * 4
    large = {**TINY, "vocab_size": 2**20}
    assert part(of(recipe(), shape=Qwen2Config(**large)), "update: logits") == 4 * CHUNK_LOGITS * 4


def test_overlap_holds_the_weights_once_more():
    size = sizes_of(recipe(), Qwen2Config(**TINY))[0]
    assert part(of(recipe(rollout={"overlap": True})), "second process: weights") == 4 * size.parameters


def test_the_peak_is_the_largest_phase_and_not_the_sum():
    made = Memory(
        (
            Part("a", 5),
            Part("b", 7, frozenset({"rollout"})),
            Part("c", 9, frozenset({"update"})),
            Part("h", 99, host=True),
        )
    )
    assert (made.peak, made.phase, made.at("rollout"), made.host) == (14, "update", 12, 99)


def test_gradients_of_a_single_micro_batch_come_while_its_activations_go():
    one, several = of(recipe()), of(recipe(), 100)
    whole = sum(p.size for p in one.parts if p.name in ("weights", "Adam state", "reference copy"))
    assert one.at("update") == whole + part(one, "update: activations") + part(one, "update: logits")
    assert several.at("update") > whole + part(several, "update: activations") + part(several, "gradients")


@pytest.mark.parametrize(("stage", "shares"), [(1, (1, 1, 4)), (2, (1, 4, 4)), (3, (4, 4, 4))])
def test_each_zero_stage_shards_one_thing_more(stage, shares):
    size = sizes_of(recipe(), Qwen2Config(**TINY))[0]
    made = of(recipe(), layout=Layout("", 4, stage))
    whole = (4 * size.parameters, 4 * size.parameters, 8 * size.parameters)
    expected = [-(-n // s) for n, s in zip(whole, shares, strict=True)]
    assert [part(made, name) for name in ("weights", "gradients", "Adam state")] == expected
    assert part(made, "weights of the optimizer") == size.parameters  # float32 again, a quarter each
    offloaded = of(recipe(), layout=Layout("", 4, stage, offload=True))
    assert offloaded.host >= 3 * size.parameters and offloaded.peak < made.peak


def test_the_largest_micro_batch_fits_and_one_position_more_does_not():
    given, sizes = recipe(), sizes_of(recipe(), Qwen2Config(**TINY))
    room = process_memory(share(given, 200), *sizes).peak
    tokens = largest_budget(share(given), *sizes, room)
    assert 200 <= tokens < 336
    assert (
        process_memory(share(given, tokens), *sizes).peak
        <= room
        < process_memory(share(given, tokens + 1), *sizes).peak
    )
    assert largest_budget(share(given), *sizes, 10**9) == 336  # the whole step
    assert largest_budget(share(given), *sizes, 1000) == 0


def test_off_the_cpu_packed_rows_attend_to_copies_of_their_prompts():
    cpu, gpu = of(recipe()), of(recipe(), device="cuda")
    copies = 3 * 24 * (2 * 30 + 2 * 10) * 32 * 4  # layers, rows, keys and values of P + C, queries and outputs of C
    assert part(gpu, "update: activations") - part(cpu, "update: activations") == copies


# ---- against real steps

ROLLOUT = {"prompts_per_step": 4, "samples_per_prompt": 8, "max_new_tokens": 48}
REAL = {
    "grpo with its reference": dict(update={"tokens_per_microbatch": 2000}),
    "an adapter": dict(model={"lora": {"rank": 8}}, update={"tokens_per_microbatch": 2000}),
    "checkpointing": dict(model={"gradient_checkpointing": True}, update={"tokens_per_microbatch": 2000}),
    "ppo with its critic": PPO | dict(update={"tokens_per_microbatch": 1000}),
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Of each run what `tests.training.peak_memory` found, with a model of 22 MiB: interpreter and rollouts do not matter.

    What is freed goes back at once (MALLOC_MMAP_THRESHOLD_): estimated is what is alive, not what glibc keeps.
    """
    shape: dict[str, Any] = dict(seed=0, vocabulary=4096, hidden_size=256, intermediate_size=768, num_hidden_layers=6)
    folder, tokenizer = tmp_path_factory.mktemp("plan") / "model", character_tokenizer()
    save_model(tiny_model(**shape), tokenizer, folder)
    runs = [
        json.dumps({**given, "rollout": ROLLOUT, "model": {**given.get("model", {}), "path": str(folder)}})
        for given in REAL.values()
    ]
    command = [sys.executable, "-m", "tests.training.peak_memory", *runs]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return dict(zip(REAL, map(json.loads, lines), strict=True))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize("name", REAL)
def test_the_estimate_is_within_a_fifth_of_the_measured_peak(name, measured):
    found = measured[name]
    assert found["estimated"] == pytest.approx(found["measured"], rel=0.2), found
