"""GRPO on the real weights: an adapter, a resumed run, GSM8K's own rows, and exports that open elsewhere."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_pg import cli
from rlhf_pg.display.live import LiveView
from rlhf_pg.distributed.interrupt import Stopped, StopRequest
from rlhf_pg.models.export import save_model
from rlhf_pg.preflight import checks
from rlhf_pg.rollout import vllm_core
from rlhf_pg.training import loop, setup
from rlhf_pg.training.resume import Progress
from rlhf_pg.training.variance import _NoRunDir
from tests.smollm2.conftest import give_back_memory
from tests.tolerance import allowance, in_float64
from tests.training import small_run

ADDITIONS = {"task": "arithmetic", "template": "chat", "options": {"words": True, "count": 8}}
SIZES = {"prompts_per_step": 2, "samples_per_prompt": 2, "max_new_tokens": 6}


def recipe(folder, **changes):
    given = {
        "model": {"path": "smollm2"},
        "data": {"train": ADDITIONS},
        "rollout": SIZES | changes.pop("rollout", {}),
        "rewards": [{"fn": f"{small_run.REWARDS}:letters_modulo_seven"}],
        "optimizer": {"lr": 1e-5},
    }
    return small_run.mapping(folder, **{**given, **changes})


def test_a_run_stopped_after_its_first_step_ends_with_the_weights_of_one_that_was_not(folder, monkeypatch):
    def run(place, **changes):
        status = small_run.train(small_run.parsed(recipe(place, **changes)))
        give_back_memory()
        return status

    assert run(folder / "whole", run={"dir": str(folder / "whole"), "steps": 2, "preflight": False}) == 0
    poll = loop.TrainingRun.poll

    def stopped(run, *done):
        if run.progress.step == 1:
            raise Stopped
        poll(run, *done)

    cut = {"dir": str(folder / "cut"), "steps": 2, "preflight": False}
    monkeypatch.setattr(loop.TrainingRun, "poll", stopped)
    assert run(folder / "cut", run=cut) == 130
    assert not (folder / "cut" / "model").exists()
    monkeypatch.undo()
    assert run(folder / "cut", run=cut | {"resume": "auto"}) == 0
    weights, resumed = (load_file(folder / place / "model" / "model.safetensors") for place in ("whole", "cut"))
    small_run.assert_bitwise_equal(weights, resumed)
    steps = [json.loads(line)["step"] for line in (folder / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2]
    assert_is_an_export_that_was_trained(folder / "cut" / "model", weights)


@torch.no_grad()
def assert_is_an_export_that_was_trained(folder, weights):
    opened = AutoModelForCausalLM.from_pretrained(folder)
    assert all(torch.equal(p, weights[name]) for name, p in opened.named_parameters())


@pytest.fixture
def another_dtype():
    """accelerate has one dtype a process, unless it is made to forget."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def test_the_preflight_passes_in_bfloat16(folder, another_dtype):
    """The model's own rounding is 0.037 of a log-prob: no reason to refuse it."""
    changes = {"model": {"path": "smollm2", "dtype": "bfloat16"}, "rewards": [{"fn": "gsm8k"}]}
    assert checks.run(small_run.parsed(recipe(folder, **changes))) == 0


def test_a_step_on_real_rows_of_gsm8k(folder, gsm8k):
    arguments = [
        "recipes/smollm2_gsm8k.yaml",
        "model.path=smollm2",
        f"data.train.path={gsm8k / 'train.jsonl'}",
        f"data.eval.path={gsm8k / 'test.jsonl'}",
        "data.train.limit=4",
        "data.eval.limit=1",
        f"run.dir={folder / 'run'}",
        "run.steps=1",
        "eval.every=0",
        "checkpoint=null",
        *(f"rollout.{name}={value}" for name, value in SIZES.items()),
    ]
    assert cli.main(["train", *arguments]) == 0
    samples = (folder / "run" / "rollouts" / "step_00000001.jsonl").read_text().splitlines()
    (row,) = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(samples) == 4 and json.loads(row)["mismatch/kl"] < 1e-6
    asked = {json.loads(line)["question"]: json.loads(line)["answer"] for line in (gsm8k / "train.jsonl").open()}
    for sample in map(json.loads, samples):
        question = sample["prompt"].split("<|im_start|>user\n")[1].split("<|im_end|>")[0]
        assert asked[question].split("#### ")[1].replace(",", "") == sample["answer"]


# Last in this file: vLLM gives back only part of its memory.
def test_two_steps_on_an_adapter_leave_the_base_as_it_was_and_its_export_opens_elsewhere(folder, model, tokenizer):
    """vLLM samples where it is installed: the second step's log-probs show that the adapter has reached it."""
    with_vllm = importlib.util.find_spec("vllm") is not None
    changes = {
        "model": {"path": "smollm2", "lora": {"rank": 4}},
        "rollout": {"engine": "vllm" if with_vllm else "native"},
        "optimizer": {"lr": 1e-3},
    }
    session = setup.build(small_run.parsed(recipe(folder, **changes)))
    run = loop.TrainingRun(session, _NoRunDir(), LiveView(2, "off"), StopRequest(), Progress())  # pyright: ignore
    adapted = session.model
    drawn = {name: p.detach().clone() for name, p in adapted.named_parameters() if "lora_" in name}
    try:
        rows = [loop.train_step(run) for _ in range(2)]
    finally:
        session.close()
    assert all(row["mismatch/kl"] < 1e-6 and row["mismatch/worst"] < 1e-2 for row in rows)
    assert abs(rows[0]["kl/ref"]) < 1e-9 < rows[1]["kl/ref"]
    base = adapted.get_base_model().state_dict()  # pyright: ignore[reportCallIssue]
    for name, weight in model.state_dict().items():
        module, _, leaf = name.rpartition(".")
        assert torch.equal(base.get(f"{module}.base_layer.{leaf}", base.get(name)), weight), name
    learned = {name: p for name, p in adapted.named_parameters() if "lora_" in name}
    assert sum(not torch.equal(p, drawn[name]) for name, p in learned.items()) == len(learned) == 2 * 7 * 30
    save_model(adapted, tokenizer, folder / "model")
    assert_opens(folder / "model", adapted, tokenizer, with_vllm, apart_from=model)


@torch.no_grad()
def assert_opens(folder, live, tokenizer, with_vllm, apart_from):
    """transformers, and vLLM with its own loader, give an export's log-probs as the live model does."""
    tokens = torch.tensor([[1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198, 504, 3575]])
    live.eval()
    plain = live(input_ids=tokens).logits.log_softmax(-1)
    exact = in_float64(live)(input_ids=tokens).logits.log_softmax(-1)
    limit = allowance(plain, exact)
    assert limit < 1e-3 < (apart_from(input_ids=tokens).logits.log_softmax(-1) - exact).abs().max()
    opened = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert opened.dtype == torch.float32 and type(opened) is type(apart_from)
    assert (opened(input_ids=tokens).logits.log_softmax(-1) - exact).abs().max() <= limit
    assert json.loads((folder / "source.json").read_text())["licence"] == "apache-2.0"
    text = "<|im_start|>user\nWhat is 27 plus 48?<|im_end|>\n"
    assert AutoTokenizer.from_pretrained(folder).encode(text) == tokenizer.encode(text)
    if with_vllm:
        scored, ids = by_vllm(folder, tokens[0].tolist(), text)
        expected = exact[0, :-1].gather(1, tokens[0, 1:, None])[:, 0]
        assert (torch.tensor(scored, dtype=torch.float64) - expected).abs().max() <= limit
        assert ids == tokenizer.encode(text)


def by_vllm(folder, tokens, text):
    """The log-probs of tokens after the first, and the tokens of a text, by vLLM on an exported folder."""
    import vllm

    with vllm_core.seeded_random(0), vllm_core._restored_threads():
        settings = dict(dtype="float32", enforce_eager=True, max_model_len=64, max_num_seqs=2)
        llm = vllm.LLM(str(folder), **settings, kv_cache_memory_bytes=2**27)  # pyright: ignore[reportArgumentType]
        try:
            asked = vllm.SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
            (output,) = llm.generate([{"prompt_token_ids": tokens}], asked, use_tqdm=False)
            (spoken,) = llm.generate([text], asked, use_tqdm=False)
        finally:
            llm.llm_engine.engine_core.shutdown()
    scored = [step[token].logprob for token, step in zip(tokens[1:], output.prompt_logprobs[1:], strict=True)]  # pyright: ignore
    return scored, list(spoken.prompt_token_ids or ())
