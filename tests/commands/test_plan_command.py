"""`rlhf-pg plan`: from a configuration alone to memory, micro-batches and time in every layout."""

import json

import pytest
from transformers import GPT2Config, GPTNeoXConfig, Qwen2Config

from benchmarks import shapes
from rlhf_pg import cli
from rlhf_pg.estimate.hardware import Device
from rlhf_pg.estimate.layout import ONE_PROCESS, Layout
from rlhf_pg.estimate.model_size import sizes_of
from rlhf_pg.estimate.share import Share
from rlhf_pg.estimate.step_time import step_time
from rlhf_pg.estimate.work import step_work
from tests.estimate.test_run_estimate import TINY, recipe

SEVEN_B = dict(hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28)
SEVEN_B |= dict(num_key_value_heads=4, vocab_size=152064, tie_word_embeddings=False)
PPO = {"algorithm": {"name": "ppo"}, "kl": {"coefficient": 0.1, "placement": "reward", "estimator": "k1"}}


@pytest.fixture
def folder(tmp_path):
    """A model folder with a configuration and nothing else."""
    Qwen2Config(**SEVEN_B).save_pretrained(tmp_path / "model")  # pyright: ignore[reportArgumentType]
    return tmp_path / "model"


def planned(capsys, *arguments, recipe="recipes/gsm8k_grpo.yaml"):
    assert cli.main(["plan", recipe, *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, *arguments, recipe="recipes/gsm8k_grpo.yaml"):
    assert cli.main(["plan", recipe, *arguments]) == cli.USAGE
    return " ".join(capsys.readouterr().err.split())


def by_name(record, processes):
    return {one["name"]: one for one in record["layouts"] if one["processes"] == processes}


def test_seven_billion_parameters_need_sharding_or_an_adapter_and_nothing_is_loaded(folder, capsys):
    smaller = ("rollout.slots=64", "update.tokens_per_microbatch=2048")
    record = planned(capsys, f"model.path={folder}", *smaller, "--gpu", "H100", "--gpus", "8")
    one, eight = by_name(record, 1), by_name(record, 8)
    weights = 7_615_616_512 * 4
    parts = {part["name"]: part["bytes"] for part in eight["ZeRO-3"]["parts"]}
    assert parts["weights"] == parts["reference copy"] == parts["gradients"] == weights // 8
    assert parts["Adam state"] == 2 * weights // 8
    assert not one["one process"]["fits"] and not eight["DDP"]["fits"]
    assert one["one process, LoRA"]["fits"] and eight["ZeRO-3, offloaded"]["fits"]
    peaks = [eight[name]["peak"] for name in ("DDP", "ZeRO-1", "ZeRO-2", "ZeRO-3", "ZeRO-3, offloaded")]
    assert peaks == sorted(peaks, reverse=True)
    assert 0 < eight["ZeRO-3"]["time"]["rollout"] < eight["ZeRO-3"]["time"]["step"]
    times = eight["ZeRO-3"]["time"]
    assert times["step"] == pytest.approx(times["rollout"] + times["update"] + times["communication"])
    assert eight["ZeRO-3"]["tokens_per_s"] == pytest.approx(64 * 8 * 512 / times["step"])


def test_tables_name_every_layout_its_peak_and_its_time(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main(["plan", "recipes/toy_ppo.yaml", "--gpu", "L4", "--gpus", "8,64"]) == 0
    out = capsys.readouterr().out
    for name in (
        "one process",
        "DDP",
        "DDP LoRA",
        "ZeRO-1",
        "ZeRO-2",
        "ZeRO-3",
        "ZeRO-2 offload",
        "ZeRO-3 offload",
    ):
        assert f" {name} " in out
    for text in ("critic: Adam state", "peak", "micro-", "tokens", "8 processes", "64 processes", "GB/s"):
        assert text in out


@pytest.mark.parametrize("width", [80, 200])
@pytest.mark.parametrize("name", ["toy_ppo", "toy_grpo_lora"])
def test_every_line_fits_and_no_name_of_a_layout_is_broken(name, width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    assert cli.main(["plan", f"recipes/{name}.yaml", "--gpu", "H100", "--gpus", "8,64"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= width and "\u2026" not in out
    rows = [line.split() for line in out.splitlines() if line.split()[:1] in (["1"], ["8"], ["64"])]
    layouts = {" ".join(row[1:-8]) for row in rows if "processes:" not in row and "process:" not in row}
    lora = " LoRA" if "lora" in name else ""
    assert {f"one process{lora}", f"DDP{lora}", f"ZeRO-2 offload{lora}"} <= layouts


def test_the_first_line_says_what_to_use_for_each_number_of_gpus(folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    small = (f"model.path={folder}", "rollout.slots=64", "update.tokens_per_microbatch=2048", "--gpu", "H100")
    record = planned(capsys, *small, "--gpus", "8")
    one, eight = by_name(record, 1), by_name(record, 8)
    fits = [name for name, estimate in eight.items() if estimate["fits"] and "LoRA" not in name]
    fastest = min(fits, key=lambda name: eight[name]["time"]["step"])
    accelerate = fastest.lower().replace("zero-", "zero").replace(", offloaded", "_offload")
    needed, room = one["one process"]["peak"] / 2**30, one["one process"]["room"] / 2**30
    assert record["recommendation"].startswith(f"One H100: does not fit, {needed:.0f} of {room:.1f} GiB; ")
    adapter = one["one process, LoRA"]["peak"] / 2**30
    assert f"an adapter (model.lora={{}}) fits: {adapter:.1f} GiB, " in record["recommendation"]
    assert f"For eight use {accelerate}: {eight[fastest]['peak'] / 2**30:.1f} GiB each, " in record["recommendation"]
    assert cli.main(["plan", "recipes/gsm8k_grpo.yaml", *small, "--gpus", "8"]) == 0
    assert capsys.readouterr().out.startswith("One H100: does not fit, ")


def test_of_layouts_that_are_as_fast_the_simplest_is_recommended(capsys):
    said = planned(capsys, "--gpu", "H100", recipe="recipes/toy_grpo.yaml")["recommendation"]
    assert said.startswith("One H100: ") and " GiB, " in said and " s a step. For eight use ddp: " in said
    assert " For 64 use ddp: " in said


def test_a_micro_batch_too_large_is_answered_with_one_that_fits(folder, capsys):
    options = ("model.lora={}", "rollout.slots=64", "--gpu", "H100", "--gpus", "1")
    record = planned(capsys, f"model.path={folder}", "update.tokens_per_microbatch=500000", *options)
    largest = by_name(record, 1)["one process, LoRA"]["largest_micro_batch"]
    assert 0 < largest < 500_000
    assert f"; update.tokens_per_microbatch={largest} fits" in record["recommendation"]


def test_without_rates_there_is_a_recommendation_without_times(capsys):
    said = planned(capsys, "--gpu-memory", "24", "--gpus", "8", recipe="recipes/toy_grpo.yaml")["recommendation"]
    assert said.startswith("One GPU with 24 GiB: ") and "of 21.1 GiB. For eight use ddp: " in said  # 24 x 0.9 - 0.5
    assert " a step" not in said


def test_without_rates_there_are_no_times_and_the_tables_say_how_to_get_them(capsys):
    record = planned(capsys, "--gpu-memory", "24", recipe="recipes/toy_grpo.yaml")
    assert all(one["time"] is None for one in record["layouts"])
    assert cli.main(["plan", "recipes/toy_grpo.yaml", "--gpu-memory", "24"]) == 0
    assert "Give --measure, --gpu, or --tflops and --bandwidth" in " ".join(capsys.readouterr().out.split())


def test_rates_that_are_given_or_measured_scale_the_time(capsys):
    given = ("--gpu-memory", "24", "--bandwidth", "100", "--gpus", "1")
    slow = planned(capsys, *given, "--tflops", "1", recipe="recipes/toy_grpo.yaml")["layouts"][0]["time"]
    fast = planned(capsys, *given, "--tflops", "10", recipe="recipes/toy_grpo.yaml")["layouts"][0]["time"]
    assert slow["update"] == pytest.approx(10 * fast["update"])
    measured = planned(capsys, "--measure", recipe="recipes/toy_grpo.yaml")
    assert measured["device"]["flops"] > 1e8 and measured["device"]["bandwidth"] > 1e7
    assert measured["layouts"][0]["time"]["step"] > 0


def test_only_layouts_that_train_are_planned(capsys):
    names = by_name(planned(capsys, "--gpu", "H100", "--gpus", "8", recipe="recipes/toy_trpo.yaml"), 8)
    assert sorted(names) == ["DDP", "DDP, LoRA"]  # DeepSpeed keeps what a trust region step needs
    overlapped = ("rollout.overlap=true", "--gpu", "H100")
    assert {one["processes"] for one in planned(capsys, *overlapped, recipe="recipes/toy_grpo.yaml")["layouts"]} == {1}


def test_a_recipe_on_an_adapter_is_planned_on_it_in_every_layout(capsys):
    names = by_name(planned(capsys, "--gpu", "H100", "--gpus", "8", recipe="recipes/toy_grpo_lora.yaml"), 8)
    assert "ZeRO-2, LoRA" in names and not {"ZeRO-2", "ZeRO-3", "ZeRO-3, LoRA"} & set(names)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--gpu", "H10"], "--gpu H10: not known; known are A10, A100"),
        (["--gpu", "H10"], "did you mean 'H100'?"),
        (["--gpus", "8,none"], "--gpus none: whole numbers from 1, as in --gpus 1,8,64"),
        (["--gpu-memory", "-1"], "--gpu-memory -1: must be above 0"),
        (["--mfu", "30"], "--mfu 30: is a share"),
        (["--tflops", "100"], "--tflops and --bandwidth go together"),
        (["--measure", "--gpu", "H100"], "--measure takes the rates of this machine"),
    ],
)
def test_wrong_options_say_what_to_do(arguments, says, capsys):
    assert says in refused(capsys, *arguments, recipe="recipes/toy_grpo.yaml")


def test_a_folder_without_a_configuration_is_refused(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert f"no config.json in {tmp_path / 'empty'}" in refused(capsys, f"model.path={tmp_path / 'empty'}")
    assert "no folder" in refused(capsys, f"model.path={tmp_path / 'absent'}")


@pytest.mark.parametrize(
    ("shape", "why"),
    [
        (Qwen2Config(**TINY, use_sliding_window=True, sliding_window=8, max_window_layers=1), "(sliding_attention)"),
        (GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=50), "the configuration of gpt2 has no"),
        (
            GPTNeoXConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=50),
            "num_key_value_heads",
        ),
    ],
    ids=lambda x: getattr(x, "model_type", ""),
)
def test_of_a_model_of_unknown_shape_the_plan_says_that_there_is_none_and_why(shape, why, tmp_path, capsys):
    shape.save_pretrained(tmp_path / "model")
    record = planned(capsys, f"model.path={tmp_path / 'model'}")
    assert record["layouts"] == [] and why in record["no_estimate"]
    assert cli.main(["plan", "recipes/gsm8k_grpo.yaml", f"model.path={tmp_path / 'model'}"]) == 0
    out = capsys.readouterr().out
    assert "no estimate: " in out and why in out


def test_help_names_the_options(capsys):
    with pytest.raises(SystemExit):
        cli.main(["plan", "--help"])
    assert "--gpu-memory GIB" in capsys.readouterr().out


# ---- work and time, by hand and by the benchmarks' own count


@pytest.mark.parametrize("name", ["1M", "31M P256", "31M P32"])
def test_operations_of_an_update_are_those_the_benchmarks_count(name):
    shape = shapes.SHAPES[name]
    m = shape.model
    model = Qwen2Config(
        vocab_size=m.vocabulary,
        hidden_size=m.hidden,
        intermediate_size=m.intermediate,
        num_hidden_layers=m.layers,
        num_attention_heads=m.heads,
        num_key_value_heads=m.kv_heads,
        tie_word_embeddings=m.tied,
    )
    given = recipe(rollout=dict(prompts_per_step=shape.prompts, samples_per_prompt=8, max_new_tokens=shape.completion))
    made = step_work(Share(given, shape.prompt, shape.prompts, 4096), *sizes_of(given, model))
    assert made.update_flops == pytest.approx(shapes.update_flops(shape), rel=1e-12)


def works(**changes):
    given = recipe(**changes)
    return step_work(Share(given, 20, 6, 10_000), *sizes_of(given, Qwen2Config(**TINY)))


def test_decoding_reads_all_weights_a_step_and_each_rows_cache():
    read = (3 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64) + 50 * 32) * 4
    cache = 5 * (20 + 5) * 3 * 2 * 16 * 4  # slots, positions half-way, layers, keys and values, heads, bytes
    assert works().decode_steps == 5 * 10  # 24 rows in 5 slots
    assert works().rollout_bytes == 50 * (read + cache)


def test_what_is_frozen_or_left_out_costs_less_and_what_is_done_again_costs_more():
    plain = works(kl={"coefficient": 0}).update_flops
    assert works().update_flops == pytest.approx(plain * 4 / 3)  # the reference: one forward on three
    assert works(kl={"coefficient": 0}, model={"gradient_checkpointing": True}).update_flops > 1.2 * plain
    assert works(kl={"coefficient": 0}, update={"epochs": 2}).update_flops == pytest.approx(2 * plain)
    assert works(kl={"coefficient": 0}, model={"lora": {"rank": 1}}).update_flops < 0.8 * plain
    assert works(kl={"coefficient": 0}, update={"share_prompts": False}).update_flops > 1.5 * plain
    assert works(**PPO).update_flops > 1.7 * plain


def test_passes_without_gradient_are_those_that_signals_makes():
    def passes(**changes):
        return recipe(**changes).passes.of_policy

    assert passes() == 1  # the reference
    assert passes(kl={"coefficient": 0}) == 0
    assert passes(update={"epochs": 2}) == 1  # the native engine's log-probs in float32 are the old ones
    assert passes(update={"epochs": 2}, model={"dtype": "bfloat16"}) == 2
    assert passes(**PPO, critic={"backbone": "policy"}) == 2


def test_time_is_the_slower_of_reading_and_computing_and_what_is_sent():
    given = recipe(kl={"coefficient": 0})
    share, (size, _) = Share(given, 20, 6, 10_000), sizes_of(given, Qwen2Config(**TINY))
    made = step_work(share, size)
    device = Device("d", 1, flops=1e12, bandwidth=1e6, link=1e3, mfu=0.5)
    alone, eight = (step_time(share, size, made, layout, device) for layout in (ONE_PROCESS, Layout("DDP", 8)))
    assert alone and eight
    assert alone.rollout == pytest.approx(made.rollout_bytes / 1e6)
    assert alone.update == pytest.approx(made.update_flops / 0.5e12)
    assert (alone.communication, eight.communication) == (0, pytest.approx(2 * 7 / 8 * 4 * size.trainable / 1e3))
    computed = step_time(share, size, made, ONE_PROCESS, Device("d", 1, flops=1e6, bandwidth=1e30, mfu=0.5))
    assert computed and computed.rollout == pytest.approx(made.rollout_flops / 0.5e6)
    assert step_time(share, size, made, ONE_PROCESS, Device("d", 1)) is None
