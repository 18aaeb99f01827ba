"""Native engine, vLLM, the trainer's shared prompts and transformers give the sampled tokens the same log-probs."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from rlhf_pg.data.collate import collate
from rlhf_pg.models.load import load_model
from rlhf_pg.models.policy import Policy
from rlhf_pg.rollout.native import NativeEngine
from rlhf_pg.rollout.vllm import VllmEngine
from rlhf_pg.types import Rollout, Sampling, Score
from tests.rollout.contract import full_forward
from tests.tolerance import AS_GOOD_AS, allowance, in_float64

SAMPLING = Sampling(samples=2, max_new_tokens=6, seed=3, temperature=0.7)


@pytest.fixture(scope="module")
def exact(model):
    """The truth: the same weights, all arithmetic in float64."""
    return in_float64(model)


def scored(model, prompts, groups) -> torch.Tensor:
    """Log-probs [tokens, V] by a full forward of each sample, without cache or padding."""
    rows = [(prompt, sample) for prompt, group in zip(prompts, groups, strict=True) for sample in group]
    return torch.cat([full_forward(model, prompt, sample.tokens, SAMPLING.temperature) for prompt, sample in rows])


def sampled(groups) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [tokens, 1] and the log-probs [tokens] that came with them."""
    rows = [sample for group in groups for sample in group]
    return torch.cat([row.tokens for row in rows])[:, None], torch.cat([row.logp for row in rows])


def assert_as_accurate(logp: torch.Tensor, tokens: torch.Tensor, plain: torch.Tensor, truth: torch.Tensor) -> None:
    """Assert that log-probs err no more than a plain computation in the same dtype, at most and on average."""
    error, usual = ((each - truth.gather(1, tokens)[:, 0]).abs() for each in (logp, plain.gather(1, tokens)[:, 0]))
    assert error.max() <= allowance(plain, truth)
    assert error.mean() <= AS_GOOD_AS * usual.mean()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_native_engine_and_the_trainer_score_as_transformers_does(model, exact, prompts, dtype):
    arithmetic = torch.autocast("cpu", dtype=torch.bfloat16) if dtype == "bfloat16" else nullcontext()
    with arithmetic:
        groups = NativeEngine(model, [2]).generate(prompts, SAMPLING)
        plain = scored(model, prompts, groups)
    truth = scored(exact, prompts, groups)
    tokens, logp = sampled(groups)
    assert_as_accurate(logp, tokens, plain, truth)
    assert len({tuple(sample.tokens.tolist()) for group in groups for sample in group}) > len(prompts)
    rollouts = [
        Rollout(prompt, sample, "", Score(1.0, {}, "scored"))
        for prompt, group in zip(prompts, groups, strict=True)
        for sample in group
    ]
    batch = collate(rollouts)
    policy = Policy(load_model("smollm2"), SAMPLING.temperature)  # its own: a policy changes how its model computes
    assert policy.share_prompts
    with torch.no_grad(), arithmetic:
        trained, _ = policy(batch)
    assert_as_accurate(trained[batch.mask], tokens, plain, truth)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_vllm_scores_as_transformers_does(model, exact, prompts, dtype, needs_vllm):
    engine = VllmEngine(model, [2], slots=8, dtype=dtype, context=64)
    try:
        groups = engine.generate(prompts, SAMPLING)
    finally:
        engine.close()
    plain = scored(load_model("smollm2").to(getattr(torch, dtype)).eval(), prompts, groups)  # pyright: ignore
    assert_as_accurate(sampled(groups)[1], sampled(groups)[0], plain, scored(exact, prompts, groups))
    assert len({tuple(sample.tokens.tolist()) for group in groups for sample in group}) > len(prompts)
